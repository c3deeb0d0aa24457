"""diffseg categories --naming detector: boxes of small random detectors, and their votes held against plain loops."""

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diffseg.models.joint.files import KINDS, fetch_joint
from diffseg.models.joint.model import PROMPT, Detector
from diffseg.types import IGNORE
from jobs.shared import cli
from pipeline.categories.words import CHOICES, votes
from pipeline.derived.joined import DerivedTable
from pipeline.inputs.decode import decode
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from tests.categories.detectors import DETECTORS, LONGEST, small_detector
from tests.categories.joint import small_model
from tests.support.labelled import make_run, own_photo_but_one, photo

LINES = ("cat, kitten\tthing", "dog", "sky, photo of the sky\tstuff", "tree")
WORDS = ("cat", "kitten", "dog", "sky", "photo of the sky", "tree")
OF_LINE = (0, 0, 1, 2, 2, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: small_detector(tmp_path_factory.mktemp("models") / kind, kind) for kind in DETECTORS}


@pytest.fixture
def run(tmp_path):
    return str(make_run(tmp_path, rows=own_photo_but_one, failed={(0, 4): "undecodable"}).store)


@cache
def whole_model(folder, kind):
    """The model as transformers loads it, and what makes images ready for it."""
    model = getattr(transformers, KINDS["detector"][kind]).from_pretrained(folder).eval()
    return model, transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def by_the_library(folder, kind, image, groups):
    """Boxes and scores of each group of words by the model's own forward pass and text as a user would write it."""
    model, ready = whole_model(folder, kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = ready(images=Image.fromarray(image), return_tensors="pt").pixel_values
    size = torch.tensor([image.shape[:2]])
    for words in groups:
        if kind == "grounding-dino":
            text = tokenizer("".join(f"{word}. " for word in words), return_tensors="pt")
            spans, at = [], 1
            for word in words:
                length = len(tokenizer(word)["input_ids"]) - 2
                spans.append(range(at, at + length))
                at += length + 1
            with torch.no_grad():
                seen = model(pixel_values=pixels, **text)
            tokens = 1 / (1 + np.exp(-seen.logits[0].double().numpy()))
            scores = np.stack([np.mean([tokens[:, place] for place in span], axis=0) for span in spans], axis=1)
            scale = torch.tensor([1.0] * 4)
        else:
            text = tokenizer([PROMPT.format(word) for word in words], padding=True, return_tensors="pt")
            with torch.no_grad():
                seen = model(pixel_values=pixels, **text)
            scores = 1 / (1 + np.exp(-seen.logits[0].double().numpy()))
            square = [size.max() / size[0, 1], size.max() / size[0, 0]] if kind == "owlv2" else [1.0, 1.0]
            scale = torch.tensor(square * 2)
        corners = transformers.image_transforms.center_to_corners_format(seen.pred_boxes[0]) * scale
        yield corners.double().numpy(), scores


def by_loops(labels, boxes, scores):
    """Votes pixel by pixel, in float64."""
    height, width = labels.shape
    found = np.zeros((labels.max() + 1, scores.shape[1]))
    for (left, top, right, bottom), own in zip(boxes, scores, strict=True):
        inside = np.zeros(labels.shape, bool)
        for y in range(height):
            for x in range(width):
                inside[y, x] = left * width <= x + 0.5 < right * width and top * height <= y + 0.5 < bottom * height
        for segment in range(len(found)):
            pixels, both = (labels == segment).sum(), (inside & (labels == segment)).sum()
            if both:
                share_of_segment, share_of_box = both / pixels, both / inside.sum()
                for word, score in enumerate(own):
                    vote = score * math.sqrt(share_of_segment * share_of_box)
                    found[segment, word] = max(found[segment, word], vote)
    return found


def test_votes_are_those_of_the_loops():
    random = np.random.default_rng(0)
    labels = random.integers(-1, 5, (6, 9)).repeat(3, 0).repeat(2, 1).astype(np.int32)
    labels[labels == 2] = IGNORE
    corners = random.uniform(-0.3, 1.3, (30, 4))
    boxes = np.concatenate([corners, [[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.9], [2, 2, 3, 3], [0.49, 0.5, 0.5, 0.51]]])
    scores = random.uniform(size=(len(boxes), 7))
    found = votes(labels, boxes.astype(np.float32), scores.astype(np.float32))
    np.testing.assert_allclose(found, by_loops(labels, boxes.astype(np.float32), scores), atol=1e-6)
    assert (found[2] == 0).all()
    assert (found[[0, 1, 3, 4]] > 0).all()


def test_a_box_about_everything_names_the_whole_and_no_small_thing_in_it():
    labels = np.zeros((20, 20), np.int32)
    labels[4:8, 4:8] = 1
    boxes = np.array([[0, 0, 1, 1], [0.2, 0.2, 0.4, 0.4]], np.float32)
    found = votes(labels, boxes, np.array([[0.9, 0.1], [0.1, 0.5]], np.float32))
    assert found.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("kind", DETECTORS)
def test_boxes_are_the_library_s(models, kind):
    model = Detector.load(fetch_joint(str(models[kind]), "detector"), "cpu")
    groups: list[tuple[str, ...]] = [WORDS]
    if kind == "grounding-dino":
        assert len(model.read(WORDS)) == 1
        many = ("Hippopotamus", *WORDS, "a kitten of the dog", "the tree", "photo")
        counts = [len(spans) for _, spans in model.read(many)]
        assert counts == [len(many) - 2, 2]
        assert all(ids.shape[1] <= LONGEST for ids, _ in model.read(many))
        groups = [many[: counts[0]], many[counts[0] :]]
    for size in ((30, 45), (64, 20)):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        found = list(model.boxes(image, tuple(word for words in groups for word in words)))
        expected = by_the_library(models[kind], kind, image, groups)
        for (boxes, scores), (corners, shares) in zip(found, expected, strict=True):
            np.testing.assert_allclose(boxes, corners, atol=1e-5)
            np.testing.assert_allclose(scores, shares, atol=1e-5)
            assert shares.std(axis=0).min() > 0.01


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_segment_has_the_three_words_whose_boxes_cover_it_best(run, models, kind, tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(LINES))
    flags = ["categories", run, "--names", str(words), "--naming", "detector", "--with", str(models[kind])]
    assert cli.run([*flags, "--least", "0.05"]) == 0
    assert "categories/1: 4 categories in 3 windows" in capsys.readouterr().out
    ledger = Ledger.open(run)
    columns = ["category", *CHOICES, *(f"{each}_score" for each in CHOICES)]
    table, numbers = DerivedTable(ledger, "categories", columns), dict(zip(ledger.shards, (0, 100), strict=True))
    unknown = checked = 0
    for row in ledger.rows():
        number = numbers[row["shard"]] + row["index"]
        if number in (2, 4):
            assert all(value is None for each in table.of(row) for value in each.values())
            continue
        [given] = by_the_library(models[kind], kind, decode(photo(number)), [WORDS])
        near = by_loops(decode_label_map(row["label_map"]), *given)
        for segment, each in zip(row["segments"], table.of(row), strict=True):
            scores = np.array([max(near[segment["id"]][np.equal(OF_LINE, line)]) for line in range(len(LINES))])
            best = np.argsort(-scores, kind="stable")[:3]
            assert [each[f"{choice}_score"] for choice in CHOICES] == pytest.approx(scores[best], abs=1e-5)
            assert [each[choice] for choice in CHOICES] == (best + 1).tolist()
            assert each["category"] == (best[0] + 1 if scores[best[0]] >= 0.05 else None)
            unknown += each["category"] is None
            checked += 1
    assert checked == 7 * 5
    assert cli.run([*flags, "--least", "1"]) == 0
    table = DerivedTable(ledger, "categories", ["category", "first"])
    assert {each["category"] for row in ledger.rows() for each in table.of(row)} == {None}
    assert cli.run(["categories", run, "--extend"]) == 0


def test_five_hundred_words_take_one_pass_an_image(run, models, tmp_path, monkeypatch):
    path, passes = tmp_path / "many.txt", list[int]()
    path.write_text("\n".join(f"cat {number}" for number in range(500)))
    embed = transformers.OwlViTForObjectDetection.image_embedder

    def counted(*given, **named):
        passes.append(1)
        return embed(*given, **named)

    monkeypatch.setattr(transformers.OwlViTForObjectDetection, "image_embedder", counted)
    model = str(models["owlvit"])
    assert cli.run(["categories", run, "--names", str(path), "--naming", "detector", "--with", model]) == 0
    assert len(passes) == 7


@pytest.mark.parametrize(
    ("kind", "name", "content", "line"),
    [
        ("owlvit", "words.txt", "x" * LONGEST, f"tokens, and {{model}} reads {LONGEST}"),
        ("grounding-dino", "words.txt", "cat " * LONGEST, f"tokens, and {{model}} reads {LONGEST - 1}"),
        ("owlvit", "preprocessor_config.json", "[]", "describes no model and tokenizer"),
        ("owlvit", "model.safetensors", "short", "is damaged or not whole"),
        ("owlvit", "config.json", '{"model_type": "clip"}', "is a model of the kind clip, which"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, tmp_path, capsys, kind, name, content, line):
    folder, words = small_detector(tmp_path / "model", kind), tmp_path / "words.txt"
    words.write_text("cat\ndog")
    (words if name == "words.txt" else folder / name).write_text(content)
    assert cli.run(["categories", run, "--names", str(words), "--naming", "detector", "--with", str(folder)]) == 2
    told = capsys.readouterr().err.strip()
    assert line.format(model=folder) in told
    assert len(told.splitlines()) == 1


def test_weights_that_are_not_those_of_the_configuration_are_one_line(tmp_path):
    folder = small_detector(tmp_path / "model", "owlvit")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its weights are not those of config\.json: missing owlvit\.vision_model"):
        Detector.load(fetch_joint(str(folder), "detector"))
    with pytest.raises(ValueError, match=r"clip, which knows no words; possible .* owlv2, grounding-dino as detectors"):
        fetch_joint(str(small_model(tmp_path / "clip", "clip")), "detector")
