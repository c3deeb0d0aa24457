"""label --words: attention to words beside a pass, held against its arithmetic, and no label changed by it."""

import io
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffseg import DiffSeg
from diffseg.config import SegmentConfig
from diffseg.models.unet.backend import Backend
from diffseg.models.unet.loading import prompts_of
from diffseg.types import WORD
from infra.embedded.checkpoints import random_checkpoint
from infra.scenes.scene import draw_scene
from jobs.shared import cli
from pipeline.derived.joined import DerivedTable
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.table.leaf_map import decode_leaf_map

PIECES = ("ca", "cat</w>", "do", "dog</w>", "sk", "sky</w>", "tr", "tre", "tree</w>")
MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "s k", "sk y</w>", "t r", "tr e", "tre e</w>")
LINES = ("cat, kitten\tthing", "dog", "the sky-blue cat", "tree", "hippopotamus\tstuff")  # one token and several
CATEGORIES = [["cat", "kitten"], ["dog"], ["the sky-blue cat"], ["tree"], ["hippopotamus"]]


@pytest.fixture(scope="module", params=["sd1.5", "sdxl"])
def checkpoint(request, tmp_path_factory):
    """A small model whose tokenizer knows some words whole, and splits others."""
    folder = random_checkpoint(request.param, tmp_path_factory.mktemp(request.param), small=True, seed=5)
    for tokenizer in folder.glob("tokenizer*"):
        ids = json.loads((tokenizer / "vocab.json").read_text())
        free = [word for word in ids if word.startswith("<|unused")]
        for piece, place in zip(PIECES, free, strict=False):
            ids[piece] = ids.pop(place)
        (tokenizer / "vocab.json").write_text(json.dumps(ids))
        (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder


def literal(backend, folder, pixels, words):
    """Attention to words in float64, from the inputs of the pass's cross-attention: [B, W, h, w]."""
    prompts, spans = [], []
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    left = list(words)
    while left:  # as many as 77 tokens hold
        count = max(n for n in range(1, len(left) + 1) if len(tokenizer(", ".join(left[:n])).input_ids) <= 77)
        text, own, at = ", ".join(left[:count]), [], 0
        tokens = tokenizer(text, return_offsets_mapping=True)
        for word in left[:count]:
            start, stop = at, at + len(word)
            own.append([i for i, (a, b) in enumerate(tokens.offset_mapping) if start <= a and b <= stop and b > a])
            at = stop + len(", ")
        prompts.append(text)
        spans.append((own, range(1, len(tokens.input_ids) - 1)))
        left = left[count:]
    states = []
    for suffix in ("", "_2") if (folder / "text_encoder_2").is_dir() else ("",):
        kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
        encoder = kind.from_pretrained(folder / f"text_encoder{suffix}").eval()
        own_tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        ids = own_tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            found = encoder(ids, output_hidden_states=True)
        sdxl = (folder / "text_encoder_2").is_dir()
        states.append((found.hidden_states[-2] if sdxl else found.last_hidden_state).double())
    hidden = torch.cat(states, dim=-1)

    given, hooks = defaultdict(list), []
    for name, module in backend.unet.named_modules():
        if name.endswith("attn2"):
            hooks.append(module.register_forward_pre_hook(lambda layer, args: given[layer].append(args[0].double())))
    with torch.no_grad():
        backend.unet(backend.latents(pixels), backend.config.timestep, **backend.conditions(pixels))
    for hook in hooks:
        hook.remove()
    height, width = (side // 8 for side in pixels.shape[2:])
    finest = max(states.shape[1] for [states] in given.values())
    scale = round((height * width / finest) ** 0.5)
    grid = height // scale, width // scale
    total: Any = 0.0
    by_word: list[Any] = [0.0] * len(words)
    for layer, [inputs] in given.items():
        halvings = round(np.log2((height * width / inputs.shape[1]) ** 0.5))
        if halvings >= 3:
            continue
        heads, own_grid = layer.heads, (height >> halvings, width >> halvings)
        query = inputs @ layer.to_q.weight.double().T
        at = 0
        for prompt, (own, listed) in zip(hidden, spans, strict=True):
            key = prompt @ layer.to_k.weight.double().T
            size = query.shape[-1] // heads
            mean: Any = 0.0
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                raised = torch.exp(query[..., part] @ key[:, part].T / size**0.5)
                mean = mean + raised / raised.sum(-1, keepdim=True) / heads

            def enlarged(values, own_grid=own_grid):
                map_ = values.reshape(len(values), 1, *own_grid)
                if own_grid == grid:
                    return map_[:, 0]
                return torch.nn.functional.interpolate(map_, grid, mode="bicubic")[:, 0].clamp(min=0)

            total = total + enlarged(sum(mean[..., token] for token in listed))
            for span in own:
                by_word[at] = by_word[at] + enlarged(sum(mean[..., token] for token in span) / len(span))
                at += 1
    return torch.stack([each / total for each in by_word], 1).numpy()


def loaded(checkpoint, words):
    """A model of random weights whose cells attend to words more unlike than they would."""
    backend: Any = Backend.load(str(checkpoint), SegmentConfig(words=words, dtype="float32"), device="cpu")
    for name, weight in backend.unet.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            weight *= 30
    return backend


def test_attention_to_words_is_the_literal_one_and_maps_stay_the_same_bits(checkpoint):
    words = (
        *(word for own in CATEGORIES for word in own),
        *(f"{each} {n}" for n in range(9) for each in ("dogs", "Tree")),
    )
    backend, plain = loaded(checkpoint, words), loaded(checkpoint, None)
    side = backend.config.image_size
    pixels = torch.rand(2, 3, side, side + 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = literal(backend, checkpoint, pixels, words)
    maps: Any = backend.attend(pixels, features=True)
    found = maps.words.numpy()
    assert found.shape == (2, len(words), *maps.grid)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std(axis=(2, 3)).min() > 1e-4, "words of which all cells have the same would agree with anything"
    assert backend.attend(pixels).words is None
    bare: Any = plain.attend(pixels, features=True)
    assert all(torch.equal(one, other) for one, other in zip(maps.levels, bare.levels, strict=True))
    assert torch.equal(maps.features, bare.features)


def test_five_hundred_words_are_in_as_many_prompts_as_they_need(checkpoint):
    words = tuple(f"cat {number}" for number in range(500))
    prompts = prompts_of(checkpoint, "text_encoder", words)
    assert {len(ids) for ids, _ in prompts} == {77}
    assert prompts[0] == prompts_of(checkpoint, "text_encoder")[0]
    spans = [ids[place.start : place.stop] for ids, places in prompts for place in places]
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    assert [tokenizer.decode(span).replace(" ", "") for span in spans] == [word.replace(" ", "") for word in words]
    assert len(prompts) > 30


@pytest.fixture(scope="module")
def photo():
    return draw_scene(np.random.default_rng(3), (96, 128)).image


@pytest.mark.parametrize(
    "settings",
    [{"vectors": True, "ridges": True}, {"tree": False}, {"mode": "paper"}, {"mode": "quality"}, {"crop_layers": 1}],
    ids=str,
)
def test_no_label_is_changed_by_words(photo, settings):
    plain, worded = (
        DiffSeg.from_pretrained("tiny", SegmentConfig(image_size=128, words=words, **settings), device="cpu")
        for words in (None, LINES)
    )
    before: Any = plain.segment([photo])[0]
    after: Any = worded.segment([photo])[0]
    assert np.array_equal(before.label_map, after.label_map)
    assert before.segments == after.segments
    assert before.words is None
    if before.leaf_map is not None:
        assert np.array_equal(before.leaf_map, after.leaf_map)
        assert before.tree.merges.tobytes() == after.tree.merges.tobytes()
    if before.vectors is not None:
        assert before.vectors.values.tobytes() == after.vectors.values.tobytes()
    labels = after.label_map if after.leaf_map is None else after.leaf_map
    assert after.words.shape == (labels.max() + 1, 3)
    assert after.words.dtype == WORD


def test_a_leaf_has_the_lines_that_its_pixels_attend_to_most(photo, monkeypatch):
    segmenter = DiffSeg.from_pretrained("tiny", SegmentConfig(image_size=128, words=LINES), device="cpu")
    attend, kept = segmenter.backend.attend, list[Any]()

    def kept_too(*given, **asked):
        kept.append(attend(*given, **asked))
        return kept[-1]

    monkeypatch.setattr(segmenter.backend, "attend", kept_too)
    result: Any = segmenter.segment([photo])[0]
    maps = kept[0].words[0].double().numpy()
    (height, width), (h, w) = result.leaf_map.shape, kept[0].grid
    for leaf, row in enumerate(result.words):
        below = [
            maps[:, int((y + 0.5) * h / height), int((x + 0.5) * w / width)]
            for y, x in np.argwhere(result.leaf_map == leaf)
        ]
        means = np.mean(below, axis=0)
        lines = np.array([max(means[:2]), *means[2:]])
        best = np.argsort(-lines)[:3]
        assert row["line"].tolist() == best.tolist()
        np.testing.assert_allclose(row["score"], lines[best], atol=1e-6)


@pytest.fixture(scope="module")
def shard(photo, tmp_path_factory):
    content = []
    for number, image in enumerate((photo, photo[::-1], photo[:, ::-1])):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        content.append((str(number), {"png": buffer.getvalue()}))
    path = tmp_path_factory.mktemp("in") / "s.tar"
    path.write_bytes(write_samples(content))
    return str(path)


@pytest.fixture(scope="module")
def words_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(LINES))
    return str(path)


def label(shard, output, *flags):
    command = ["label", shard, "--output", str(output), "--model", "tiny", "--workers", "0", "--image-size", "128"]
    return cli.run([*command, *flags])


@pytest.mark.parametrize("tree", ["--tree", "--no-tree"])
def test_segments_are_named_by_what_their_leaves_attend_to(shard, words_file, tmp_path, tree, capsys):
    run = str(tmp_path / "run")
    assert label(shard, run, "--words", words_file, tree) == 0
    assert label(shard, run, "--words", words_file, tree) == 0  # it is the same run
    flags = ["--segments", "3"] if tree == "--tree" else []
    assert cli.run(["categories", run, "--naming", "cross-attention", "--least", "0.001", *flags]) == 0
    told = capsys.readouterr()
    assert "5 categories in 1 windows" in told.out
    ledger = Ledger.open(run)
    names = ["category", "first", "first_score", "second", "second_score"]
    table, seen = DerivedTable(ledger, "categories", names), 0
    for row in ledger.rows():
        best = np.frombuffer(row["words"], WORD).reshape(-1, 3)
        labels = decode_label_map(row["label_map"])
        if tree == "--tree":
            from diffseg.cut import Cut

            labels_at, leaf_map = (
                decode_label_map(ledger.at_cut(row, Cut(segments=3))["label_map"]),
                decode_leaf_map(row["leaf_map"]),
            )
        else:
            labels_at = leaf_map = labels
        assert len(best) == leaf_map.max() + 1
        found = table.of({**row, "segments": [{"id": id_} for id_ in range(labels_at.max() + 1)]})
        for segment, each in enumerate(found):
            pixels = [best[leaf] for leaf in leaf_map[labels_at == segment]]
            scores = np.zeros(len(LINES))
            for three in pixels:
                for line, score in three.tolist():
                    scores[line] += score / len(pixels)
            order = np.argsort(-scores, kind="stable")
            assert each["first_score"] == pytest.approx(scores[order[0]], abs=1e-6)
            assert each["second_score"] == pytest.approx(scores[order[1]], abs=1e-6)
            assert (each["category"], each["first"]) == (order[0] + 1,) * 2
            seen += 1
    assert seen >= 6
    if flags:
        return
    other = str(tmp_path / "other.txt")
    (tmp_path / "other.txt").write_text("cat")
    assert label(shard, run, "--words", other, tree) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds another run (words:" in told
    assert "--words FILE with the 5 lines that run.json holds" in told


@pytest.mark.parametrize(
    ("text", "flags", "line"),
    [
        ("", (), "an empty list of words"),
        ("cat\ndog\ncat", (), "'cat' is there twice"),
        ("cat\tanimal", (), "after a tab stands thing or stuff, not 'animal'"),
        ("x" * 76, (), "has 76 tokens, and a prompt of"),
        ("cat", ("--model", "dinov2-small-of-the-test"), "is no UNet, whose attention to words could be kept"),
    ],
)
def test_words_that_cannot_be_read_are_one_line_before_anything_starts(shard, tmp_path, capsys, text, flags, line):
    (tmp_path / "words.txt").write_text(text)
    if flags:
        flags = ("--model", str(random_checkpoint("dinov2-small", tmp_path / "vit", small=True)), "--image-size", "112")
    assert label(shard, tmp_path / "run", "--words", str(tmp_path / "words.txt"), *flags) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_without_words_is_one_line(shard, words_file, tmp_path, capsys):
    assert label(shard, tmp_path / "run") == 0
    capsys.readouterr()
    run = ["categories", str(tmp_path / "run"), "--naming", "cross-attention"]
    for flags, line in (((), "no attention to words is kept"), (("--names", words_file), "neither")):
        assert cli.run([*run, *flags]) == 2
        told = capsys.readouterr().err.strip()
        assert line in told
        assert len(told.splitlines()) == 1
