"""What a name tells: images, masks beside them, what is a system's own; and which member of a sample is its image."""

import pytest

from pipeline.inputs.kinds import is_image, is_opened, is_system, is_system_file, looks_like, shows_labels, suffix
from pipeline.inputs.tar.reading import image_of

IMAGES = """
    a.jpg a.JPEG a.jfif a.jpg_large a.png_orig a.mpo a.webp a.tif a.bmp a.gif a.avif a.jp2 a.apng
    a.heic a.HEIF a.jxl a.cr2 a.NEF a.arw a.dng a.psd a.svg
"""


@pytest.mark.parametrize("name", IMAGES.split())
def test_pictures_and_raw_files_of_cameras_are_images(name):
    assert is_image(name)


OTHERS = """
    a.txt a.mp4 a.json a.parquet a.npy a.exe jpg a.pdf a.pfm a
"""


@pytest.mark.parametrize("name", OTHERS.split())
def test_everything_else_is_none(name):
    assert not is_image(name.partition(".")[2])


def test_reader_1_knows_the_extensions_of_0_1_0_alone():
    assert is_opened("jpg", 1)
    assert not any(is_image(extension, 1) for extension in ("mpo", "jpg_large", "heic", "cr2"))


@pytest.mark.parametrize(
    "path",
    [
        *("._a.jpg", "p/._a.jpg", ".DS_Store", "__MACOSX/a.jpg", "p/__MACOSX/q/a.jpg", "Thumbs.db", "p/THUMBS.DB"),
        *("desktop.ini", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg/x.jpg", ".git/a.png", ".hidden.jpg", "./p/._a.jpg"),
        *("$RECYCLE.BIN/a.jpg", "lost+found/1.jpg", "p/.thumbnails/a.jpg"),
    ],
)
def test_hidden_files_and_those_of_systems_are_nobodys_samples(path):
    assert is_system(path)


@pytest.mark.parametrize("path", ["a.jpg", "./a.jpg", "../a.jpg", "p/thumbs.jpg", "__main__.jpg", "a/b.c/d.jpg"])
def test_others_are_samples(path):
    assert not is_system(path)


def test_a_hidden_folder_above_a_listed_file_says_nothing_of_it():
    assert not is_system_file("/home/me/.cache/a.tar")
    assert is_system_file("/home/me/.cache/._a.tar")
    assert is_system_file("s3://b/__MACOSX/a.tar")


DRAWN = """
    mask masks mask0 a_mask instance_mask bitmask seg segmentation semseg seg2 label_map labels
    labelIds gtFine gt depth depth16 disparity panoptic alpha matte trimap overlay normals flow
    edge
"""


@pytest.mark.parametrize("text", DRAWN.split())
def test_words_for_what_is_drawn_over_a_photo(text):
    assert shows_labels(text)


PLAIN = """
    photo image 0001 v2 flower final rgb left crop goods edgar posed house maps thumb
"""


@pytest.mark.parametrize("text", PLAIN.split())
def test_words_for_anything_else(text):
    assert not shows_labels(text)


@pytest.mark.parametrize(
    ("members", "image"),
    [
        ("jpg mask.png", "jpg"),
        ("heic mask.png", None),  # the photo cannot be opened
        ("mask.png json", None),  # the photo is not there
        ("heic png", None),  # the png is its mask, or the photo once more: nobody knows
        ("heic jpg", "jpg"),
        ("cr2 jpg", "jpg"),
        ("nef tif", None),
        ("dng seg0.png seg1.png", None),
        ("png", "png"),
        ("png mask.png", "png"),
        ("png depth.exr", "png"),
        ("png exr", "png"),
        ("png image.jpg", None),
        ("png thumb.jpg", "png"),
        ("png preview.jpg mask.png", "png"),
        ("thumb.jpg json", "thumb.jpg"),
        ("thumb.jpg heic", None),
        ("tif png", "png"),
        ("photo.jpg json", "photo.jpg"),
        ("photo.jpg mask.png", None),
        ("small.jpg heic", None),
        ("0001.png", "0001.png"),
        ("depth.png", None),
        ("alpha.png txt", None),
        ("label_map.png segments.json", None),
        ("gtFine_labelIds.png".lower(), None),
        ("mpo", "mpo"),
        ("jpg_large json", "jpg_large"),
        ("mpo jpg", "jpg"),
        ("jxl", None),
    ],
)
def test_a_mask_is_never_taken_for_the_photo(members, image):
    there = members.split()
    assert image_of(there) == image
    assert image_of(list(reversed(there))) == image
    assert image_of(there, there[-1]) == there[-1]


@pytest.mark.parametrize(
    ("members", "image"),
    [("heic mask.png", "mask.png"), ("heic png", "png"), ("label_map.png", "label_map.png"), ("mpo", None)],
)
def test_reader_1_takes_what_it_took(members, image):
    assert image_of(members.split(), None, 1) == image


def test_the_suffix_of_a_shard():
    names = ("a.tar", "A.TAR.GZ", "a.b.tgz", "s3://b/a.tar.zst", "a.parquet", "a.jpg", "tar", "store/1")
    assert [suffix(name) for name in names] == [".tar", ".tar.gz", ".tgz", ".tar.zst", ".parquet", "", "", ""]


def test_what_a_file_looks_like():
    assert looks_like(b"PAR1...") == ("Parquet", (".parquet",))
    assert looks_like(bytes(257) + b"ustar" + bytes(250)) == ("a tar", (".tar",))
    assert looks_like(b"") is None
    assert looks_like(bytes(512)) is None
