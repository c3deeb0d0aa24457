"""diffseg categories --naming clip: names from words by small random models, held against their arithmetic."""

import io
import json
import logging

import fsspec
import numpy as np
import pytest
from PIL import Image

from diffseg.config import texts_of
from diffseg.cut import segment_vectors
from diffseg.draw import resize_labels
from diffseg.models.joint.files import fetch_joint
from diffseg.models.joint.model import JointModel
from diffseg.types import IGNORE
from jobs.shared import cli
from pipeline.categories import words as words_module
from pipeline.categories.words import CHOICES, TEMPLATES
from pipeline.derived.joined import DerivedTable, open_run
from pipeline.derived.note import read_note
from pipeline.messages import ShardTask
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.categories.joint import LONGEST, Literal, small_model, tokens
from tests.support.labelled import make_run, own_photo_but_one, photo

TEXTS = ("a photo of a cat.", "the  Photo", "hippopotamus", "of the dog - 42")
LINES = ("cat, kitten\tthing", "dog", "sky, photo of the sky, 9\tstuff", "tree")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: small_model(tmp_path_factory.mktemp("models") / kind, kind) for kind in ("clip", "siglip")}


@pytest.fixture
def run(tmp_path):
    return str(make_run(tmp_path, rows=own_photo_but_one, failed={(0, 4): "undecodable"}).store)


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(LINES) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_and_patches_are_those_of_the_arithmetic(models, kind):
    model, literal = JointModel.load(fetch_joint(str(models[kind]), "clip")), Literal(models[kind], kind)
    for text in TEXTS:
        assert model.tokenizer(text)["input_ids"] == [each for each in tokens(kind, text) if kind == "clip" or each]
    assert len(tokens("clip", "hippopotamus")) > 8
    np.testing.assert_allclose(model.words(TEXTS), [literal.text(each) for each in TEXTS], atol=1e-5)
    for size in ((30, 45), (32, 32), (16, 16), (60, 20)):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        expected = literal.patches(image)
        np.testing.assert_allclose(model.patches(image), expected, atol=1e-5 * np.abs(expected).max())


def pooled(patches, labels):
    """The mean over each segment's pixels of the patches that they lie in."""
    (rows, columns), (height, width) = patches.shape[:2], labels.shape
    found = np.zeros((labels.max() + 1, patches.shape[2]))
    for each in set(labels[labels >= 0].tolist()):
        cells = [
            patches[int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)]
            for y, x in np.argwhere(labels == each)
        ]
        found[each] = np.mean(cells, axis=0)
    return found


def test_a_segment_is_the_mean_of_its_pixels():
    random = np.random.default_rng(2)
    patches, labels = random.normal(size=(3, 5, 4)), random.integers(-1, 3, (20, 33)).astype(np.int32)
    labels[labels == 1] = IGNORE
    cells = resize_labels(np.arange(15, dtype=np.int32).reshape(3, 5), labels.shape)
    np.testing.assert_allclose(
        segment_vectors(cells, patches.reshape(15, 4), labels), pooled(patches, labels), atol=1e-12
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_segment_has_its_three_nearest_words(run, words, models, kind, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        assert cli.run(["categories", run, "--names", words, "--naming", "clip", "--with", str(models[kind])]) == 0
    told = capsys.readouterr()
    assert "categories/1: 4 categories in 3 windows" in told.out
    assert "1 images: not the photo that was labelled" in caplog.text + told.err
    ledger, literal = Ledger.open(run), Literal(models[kind], kind)
    near = [
        [
            mean / np.linalg.norm(mean)
            for word in line.partition("\t")[0].split(", ")
            for mean in [np.mean([literal.text(template.format(word)) for template in TEMPLATES], axis=0)]
        ]
        for line in LINES
    ]
    columns = ["category", *CHOICES, *(f"{each}_score" for each in CHOICES)]
    table, numbers = DerivedTable(ledger, "categories", columns), dict(zip(ledger.shards, (0, 100), strict=True))
    checked = 0
    for row in ledger.rows():
        number = numbers[row["shard"]] + row["index"]
        found = table.of(row)
        if number == 2:
            assert all(value is None for each in found for value in each.values())
        if number in (2, 4):
            continue
        patches = literal.patches(np.asarray(Image.open(io.BytesIO(photo(number)))))
        vectors = pooled(patches, decode_label_map(row["label_map"]))
        for segment, each in zip(row["segments"], found, strict=True):
            vector = vectors[segment["id"]] / np.linalg.norm(vectors[segment["id"]])
            scores = np.array([max(vector @ word for word in words) for words in near])
            best = np.argsort(-scores)[:3]
            assert [each[choice] for choice in CHOICES] == (best + 1).tolist()
            assert [each[f"{choice}_score"] for choice in CHOICES] == pytest.approx(scores[best], abs=1e-5)
            assert each["category"] == best[0] + 1
            checked += 1
    assert checked == 7 * 5
    note = read_note(ledger, "categories")[0]
    assert note.parameters["sha256"] == fetch_joint(str(models[kind]), "clip").sha256
    assert [(each["name"], each["thing"]) for each in note.parameters["categories"]] == [
        ("cat", True),
        ("dog", None),
        ("sky", False),
        ("tree", None),
    ]


def test_a_segment_without_a_clear_lead_is_unknown_and_keeps_its_choices(run, words, models):
    flags = ["categories", run, "--names", words, "--naming", "clip", "--with", str(models["clip"])]
    assert cli.run(flags) == 0
    before = DerivedTable(Ledger.open(run), "categories", ["first_score", "second_score"])
    found = [each for row in Ledger.open(run).rows() for each in before.of(row) if each["first_score"]]
    margin = float(np.median([each["first_score"] - each["second_score"] for each in found]))
    assert cli.run([*flags, "--margin", str(margin)]) == 0
    rows = list(open_run(run, categories="categories").rows(["shard", "index", "segments"]))
    names = [each["category"] for row in rows for each in row["segments"] or ()]
    assert 0 < names.count(None) < len(names)
    table = DerivedTable(Ledger.open(run), "categories", ["category", "first", "first_score", "second_score"])
    values = [each for row in rows for each in table.of(row) if each["first"]]
    assert {each["category"] is None for each in values} == {True, False}
    values = [each for each in values if abs(each["first_score"] - each["second_score"] - margin) > 1e-6]
    for each in values:
        assert (each["category"] is None) == (each["first_score"] - each["second_score"] < margin)


def test_new_windows_are_named_by_the_same_words_and_never_by_another_model(tmp_path, words, models, capsys):
    folder = small_model(tmp_path / "model", "clip")
    ledger = make_run(tmp_path, rows=own_photo_but_one, leave_out=(0,))
    run = str(ledger.store)
    assert cli.run(["categories", run, "--names", words, "--naming", "clip", "--with", str(folder)]) == 0
    shard = list(ledger.shards.values())[1]
    rows = [own_photo_but_one(key, shard.id, index, 100 + index) for index, key in enumerate("ghi")]
    ledger.writer.commit(ShardTask(shard), 0, rows, 0, 0.0)
    norms = folder / "preprocessor_config.json"
    kept = norms.read_text()
    norms.write_text(json.dumps(json.loads(kept) | {"image_mean": [0.5, 0.5, 0.5]}))
    words_module._opened.cache_clear()  # as in a process of another day
    assert cli.run(["categories", run, "--extend"]) == 2
    assert "not those that the words were read with" in capsys.readouterr().err
    norms.write_text(kept)
    assert cli.run(["categories", run, "--extend"]) == 0
    assert "categories/2: 4 categories in 1 windows" in capsys.readouterr().out


def test_five_hundred_words_and_one(run, models, tmp_path):
    path = tmp_path / "many.txt"
    for lines in ([f"cat {number}" for number in range(500)], ["cat"]):
        path.write_text("\n".join(lines))
        assert (
            cli.run(["categories", run, "--names", str(path), "--naming", "clip", "--with", str(models["clip"])]) == 0
        )
        table = DerivedTable(Ledger.open(run), "categories", ["category", "third"])
        values = [each for row in Ledger.open(run).rows() for each in table.of(row) if each["category"]]
        assert len(values) == 7 * 5
        assert all((each["third"] is None) == (len(lines) == 1) for each in values)


def test_texts_of_lines():
    assert texts_of(LINES) == [["cat", "kitten"], ["dog"], ["sky", "photo of the sky", "9"], ["tree"]]
    with pytest.raises(ValueError, match="'kitten' is there twice"):
        texts_of(["cat, kitten", "dog, kitten"])


@pytest.mark.parametrize(
    ("lines", "flags", "line"),
    [
        ("", (), "an empty list of words"),
        ("\n \n", (), "an empty list of words"),
        (b"caf\xe9\n", (), "a list of words is text in UTF-8"),
        (b"\xef\xbb\xbfcat\ncat\n", (), "'cat' is there twice"),
        ("cat\ndog\ncat\n", (), "'cat' is there twice"),
        ("cat\ndog, , hound\n", (), "there is an empty word"),
        ("cat\tanimal\n", (), "after a tab stands thing or stuff, not 'animal'"),
        ("cat\n" + "x" * LONGEST, (), f"tokens, and {{model}} reads {LONGEST}"),
        ("cat\n", ("--naming", "guess"), "--naming guess: possible are clip, detector and cross-attention"),
        ("cat\n", ("--clusters", "4"), "name one of them"),
        ("cat\n", ("--with", "tiny"), "has no config.json; possible are models of the kinds clip, siglip"),
        ("cat\n", ("--with", "no model"), "there is no model 'no model'; possible are models of the kinds clip"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, models, tmp_path, capsys, lines, flags, line):
    path, model = tmp_path / "words.txt", str(models["clip"])
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    assert cli.run(["categories", run, "--names", str(path), "--naming", "clip", "--with", model, *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert line.format(model=model) in told
    assert len(told.splitlines()) == 1


def test_a_model_comes_from_storage_too_and_is_the_same(models, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.put(f"{models['clip']}/", "/models/clip/", recursive=True)
    store.pipe("/models/clip/training_args.bin", b"a pickle")
    there, here = fetch_joint("memory://models/clip", "clip"), fetch_joint(str(models["clip"]), "clip")
    assert there.sha256 == here.sha256
    assert not (there.folder / "training_args.bin").exists()
    np.testing.assert_array_equal(JointModel.load(there).words(["cat"]), JointModel.load(here).words(["cat"]))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("config.json", '{"model_type": "dinov2"}', "is a model of the kind dinov2, which knows no words"),
        (
            "config.json",
            '{"model_type": "clip", "text_config": {"hidden_size": 7}}',
            "describes no model and tokenizer",
        ),
        ("vocab.json", None, "has no tokenizer"),
        ("vocab.json", "[]", "describes no model and tokenizer"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json"),
        ("preprocessor_config.json", "{}", "does not say image_mean and image_std"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", "short", "is damaged or not whole"),
    ],
)
def test_models_that_are_of_no_use_are_one_line(run, words, tmp_path, capsys, name, content, line):
    folder = small_model(tmp_path / "model", "clip")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert cli.run(["categories", run, "--names", words, "--naming", "clip", "--with", str(folder)]) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert len(told.splitlines()) == 1
