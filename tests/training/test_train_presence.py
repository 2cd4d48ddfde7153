"""train-presence: what it draws, that it goes on to the byte, and what it refuses."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffews.cli.main import main
from diffews.data.registry import open_benchmark
from diffews.data.training import TrainingEpisodes
from diffews.models.presence import make_head
from diffews.training.presence import draw_question, fit_head


@pytest.fixture(scope="module")
def words(weight, base, coco):
    return [
        "train-presence", f"weight={weight}", f"base={base}", f"data={coco}", "image_size=64",
        "queries=12", "batch=4", "workers=0", "hidden=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """A weight dir that got a head; never written to."""
    out = tmp_path_factory.mktemp("trained") / "mine_fold0"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        assert main([*words, f"out={out}"]) == 0
    return out


# ---- what is drawn ----


def test_a_question_is_a_function_of_seed_and_index(coco):
    benchmark = open_benchmark("coco20i", coco, 0, "train")
    episodes = TrainingEpisodes(benchmark, 5)
    pairs = [draw_question(benchmark, episodes, 64, 2, index) for index in range(12)]
    again = [draw_question(benchmark, TrainingEpisodes(benchmark, 5), 64, 2, i) for i in (11, 3)]
    assert again == [pairs[11], pairs[3]]

    for positive, negative in pairs:
        held = set(np.unique(benchmark.class_map(positive.query)) - 1)
        assert positive.query == negative.query and len(negative.supports) == 2
        assert positive.class_id in held and negative.class_id not in held
        for episode in (positive, negative):
            assert episode.class_id % 4 != 0  # of fold 0 these are novel
            for support in episode.supports:
                assert episode.class_id in np.unique(benchmark.class_map(support)) - 1


# ---- the fit ----


def test_the_members_fit_as_they_would_alone(pipe):
    """Against torch's own layers, optimizer and schedule, one member after the other."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(130, 5), (torch.rand(130) > 0.5).float()
    head = make_head(pipe.unet, "fast", hidden=3)
    narrow = type(head)("fast", {}, 5, 3)
    fit_head(narrow, inputs, labels, seed=7)

    spread = (inputs - inputs.mean(0)) / (inputs.std(0, unbiased=False) + 1e-3)
    said = narrow(inputs[:, None])
    assert said.shape == (130,) and ((said > 0) & (said < 1)).all()
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.SiLU(), torch.nn.Linear(3, 1))
    alone = []
    for member in range(5):
        net.load_state_dict({
            "0.weight": narrow.enter[member].T, "0.bias": narrow.enter_bias[member, 0],
            "2.weight": narrow.leave[member].T, "2.bias": narrow.leave_bias[member, 0],
        })  # fmt: skip
        alone.append(net(spread)[:, 0].sigmoid())
    assert torch.allclose(said, torch.stack(alone).mean(0), atol=1e-6)
    assert len({round(x[0].item(), 6) for x in alone}) == 5  # another start each


def test_a_fit_finds_what_is_there(pipe):
    torch.manual_seed(0)
    inputs = torch.randn(4000, 4)
    labels = (inputs[:, 0].abs() > 0.67).float()  # no line parts these
    head = type(make_head(pipe.unet, "fast"))("fast", {}, 4, 16)
    fit_head(head, inputs[:3000], labels[:3000], seed=0)
    said = head(inputs[3000:, None]) > 0.5
    assert (said == (labels[3000:] > 0)).float().mean() > 0.85


# ---- the command ----


def test_a_head_is_written_into_a_weight_dir_of_its_own(trained, weight, base, coco, run):
    record = json.loads((trained / "presence" / "config.json").read_text())
    assert (record["kind"], record["fold"], record["benchmark"]) == ("full", 0, "coco20i")
    names = open_benchmark("coco20i", coco, 0, "train").class_names
    assert record["seen"] == [names[c] for c in names if c % 4]
    assert not (trained / "presence.work").exists()
    assert str(coco) not in json.dumps(record)  # no place of this machine

    # it evaluates as it is; the UNet is the same file
    same = "unet/unet/diffusion_pytorch_model.safetensors"
    assert os.path.samefile(trained / same, weight / same)
    out = trained.parent / "eval"
    outcome = run("eval", f"weight={trained}", f"data={coco}", "episodes=3", "absent=true",
                  "image_size=64", "workers=0", f"out={out}")  # fmt: skip
    assert outcome.code == 0 and "AUROC" in outcome.out


def test_an_interrupted_training_goes_on_to_the_same_bytes(
    trained, words, run, tmp_path, monkeypatch
):
    import diffews.training.presence as module

    # as if a kill came in the fit: what was computed is kept
    out = tmp_path / "mine_fold0"
    monkeypatch.setattr(module, "CHUNK", 4)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_head", stop)
    outcome = run(*words, f"out={out}")
    assert outcome.code == 130 and "the same command goes on" in outcome.err
    files = sorted((out / "presence.work").glob("inputs-*"))
    assert len(files) == 3 and not (out / "presence").exists()

    # and one in the middle of them
    files[1].unlink()
    monkeypatch.undo()
    monkeypatch.setattr(module, "CHUNK", 4)
    outcome = run(*words, f"out={out}")
    assert outcome.code == 0 and "going on from query 8" in outcome.err
    one, other = (load_file(d / "presence" / "head.safetensors") for d in (out, trained))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_another_seed_does_not_go_on(words, run, refused, tmp_path, monkeypatch):
    import diffews.training.presence as module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_head", stop)
    assert run(*words, "queries=2", f"out={tmp_path / 'o'}").code == 130
    assert "seed: 0 there, 1 now" in refused(*words, "queries=2", "seed=1", f"out={tmp_path / 'o'}")


# ---- what is refused ----


def test_a_fold_whose_training_classes_are_novel_to_the_weights_is_refused(words, refused):
    error = refused(*words, "fold=1")
    assert "was trained with fold 0" in error and "fold=0" in error


def test_a_head_that_is_there_is_not_written_over(trained, words, refused):
    assert "presence exists; remove it" in refused(*words, f"out={trained}")


def test_another_folder_is_not_written_into(words, refused, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    assert "is not empty" in refused(*words, f"out={tmp_path}")
    assert "is a file" in refused(*words, f"out={tmp_path / 'note.txt'}")
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_a_threshold_is_no_key_of_a_head(words, refused):
    assert "leave these keys out" in refused(*words, "threshold=0.3")


def test_one_class_has_no_negative(weight, base, refused, tmp_path, picture):
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(4)]
    for image in images:
        picture(image["id"]).save(tmp_path / image["file_name"])
    annotations = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "iscrowd": 0, "area": 400,
         "bbox": [9, 9, 20, 20], "segmentation": [[9, 9, 29, 9, 29, 29, 9, 29]]}
        for i in range(4)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    error = refused(
        "train-presence", f"weight={weight}", f"base={base}", "benchmark=coco_json", "novel=dog",
        f"annotations={tmp_path / 'a.json'}", f"images={tmp_path}", f"data={tmp_path}",
        "image_size=64", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert "one class only (cat)" in error and not (tmp_path / "out").exists()


def test_weights_of_another_variant_have_no_head(own_weight, base, coco, refused):
    (own_weight / "diffews.json").write_text(
        json.dumps({"variant": {"interaction": "qkv_fusion"}, "base": str(base)})
    )
    error = refused("train-presence", f"weight={own_weight}", f"data={coco}", "image_size=64",
                    "queries=2", "workers=0")  # fmt: skip
    assert "interaction=kv_fusion" in error
    assert not (own_weight / "presence.work").exists()
