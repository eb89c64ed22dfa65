import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL, PROJECT_ROOT
from huvidpo.checkpoint import load_tensors, save_tensors
from huvidpo.files import hash_file
from judging import promote
from judging.promote import REFUSED, Pair, decide, main
from preferences.clips import read_clips
from preferences.metrics import EvaluationError
from preferences.records import Comparison, append
from tiny.world import caption, random_scene, render
from training.motion import main as train_motion

SHIPPED = PROJECT_ROOT / "models/tiny"


@pytest.fixture
def quick_family(tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random family with clips of 4 frames; its categories are `tmp_path/categories`."""
    folder = tmp_path / "catalog"
    folder.mkdir()
    text = (tiny_family / "catalog" / "random.toml").read_text()
    text = text.replace("steps = 3\n", "steps = 3\nframes = 4\n", 1)
    text = text.replace(f"{tiny_family.resolve().as_posix()}/categories", f"{tmp_path}/categories")
    (folder / "quick.toml").write_text(text)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(folder))
    return tiny_family


def arguments(candidate: Path, against: Path, run: Path, *more: str) -> list[str]:
    given = {"--category": "horse", "--candidate": candidate, "--against": against, "--run": run}
    return [*(str(part) for pair in given.items() for part in pair), *more]


def pairs(margins: list[float], motion: float = 1.0, prompts: int = 20) -> list[Pair]:
    return [
        Pair(f"horse {i % prompts}", "a horse", i, margin, motion, 1.0) for i, margin in enumerate(margins)
    ]


def test_the_gate_wants_wins_beyond_chance_and_motion():
    accepted = decide(pairs([1] * 15 + [-1] * 5))
    assert accepted.accepted
    assert accepted.win_rate.mean == 0.75
    (reason,) = decide(pairs([1] * 12 + [-1] * 8)).reasons
    assert reason == "it wins 60% of 20 pairs of 20 prompts (interval 39% to 78%), which must lie above 50 %"
    (reason,) = decide(pairs([1] * 20, 0.85)).reasons
    assert reason == "motion falls to 85% of the old; at least 90% must stay"
    assert decide(pairs([1] * 20, 0.91)).accepted
    assert len(decide(pairs([0] * 20, 0.0)).reasons) == 2  # identical clips win half


def test_the_gate_wants_no_loss_by_other_measures():
    """Every pair won by the judge, and by the truth one half of them, or less."""
    won = pairs([1] * 20)
    even = [dataclasses.replace(p, beside={"truth": (-1.0) ** i}) for i, p in enumerate(won)]
    assert decide(even).accepted
    assert decide(even).beside["truth"].mean == 0.5
    (reason,) = decide(
        [dataclasses.replace(p, beside={"truth": -1.0 if i < 11 else 1}) for i, p in enumerate(won)]
    ).reasons
    assert reason == "by truth it wins 45% of the pairs; at least half must be won"


def test_many_seeds_of_few_prompts_are_no_proof():
    """30 of 40 pairs, once of 40 prompts and once of four, of which it wins three: one more is chance."""
    assert decide(pairs([1] * 30 + [-1] * 10, prompts=40)).accepted
    of_four = decide(pairs([-1 if i % 4 == 0 else 1 for i in range(40)], prompts=4))
    assert of_four.win_rate.mean == 0.75
    assert not of_four.accepted
    assert "75% of 40 pairs of 4 prompts" in of_four.reasons[0]


def test_what_goes_wrong_in_the_gate_leaves_what_ships(quick_family, tmp_path, monkeypatch):
    """Whatever raises after the verdict: old weights and old card stay, and no verdict of before is left."""
    old = quick_family / "categories" / "horse.safetensors"
    shipped = tmp_path / "categories" / "horse.safetensors"
    promote.ship(old, shipped, {"accepted": True})
    before = {path.name: path.read_bytes() for path in shipped.parent.iterdir()}
    assert len(before) == 2
    run = tmp_path / "run"
    run.mkdir()
    (run / "promotion.json").write_text('{"accepted": true}')
    monkeypatch.setattr(promote, "_simulated", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments(old, old, run, "--accept"))
    assert not (run / "promotion.json").exists()
    with pytest.raises(TypeError):  # its card cannot be written
        promote.ship(old, shipped, {"no JSON": {1, 2}})
    left = {path.name: path.read_bytes() for path in shipped.parent.iterdir() if path.is_file()}
    assert left == before


@pytest.mark.skipif(not (SHIPPED / "video" / "unet").is_dir(), reason="models/tiny is not there yet")
def test_an_adapter_trained_to_freeze_the_clip_is_refused(tmp_path, monkeypatch, capsys):
    """The shipped family, taught by still pictures that later frames repeat the first."""
    catalog, stills = tmp_path / "catalog", tmp_path / "stills"
    catalog.mkdir()
    stills.mkdir()
    text = (PROJECT_ROOT / "huvidpo" / "data" / "models.toml").read_text()
    tiny = text[text.index("[models.tiny]") : text.index("[models.sd14]")]
    tiny = re.sub(r"^steps = \d+", "frames = 6\nsteps = 4", tiny, count=1, flags=re.MULTILINE)
    (catalog / "quick.toml").write_text(tiny.replace("models/tiny/categories", f"{tmp_path}/categories"))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(catalog))
    rng = np.random.default_rng(0)
    for i in range(4):
        scene = random_scene(rng, "horse")
        (stills / f"{i}.mp4").write_bytes(video.encode(render(scene, 1).repeat(8, 0), 8))
        (stills / f"{i}.txt").write_text(caption(scene))
    frozen = tmp_path / "frozen.safetensors"
    fields = {"frames": 6, "batch_size": 4, "lr": 3e-3, "sample_every": 0, "warmup_steps": 0}
    settings = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    trained = ["--model", DEFAULT_MODEL, "--category", "horse", "--clips", str(stills), "--out", str(frozen)]
    assert train_motion([*trained, "--steps", "8", "--run", str(tmp_path / "train"), *settings]) == 0

    run = tmp_path / "run"  # against the base: the categories' folder is empty
    given = ["--category", "horse", "--candidate", str(frozen), "--run", str(run), "--count", "3", "--accept"]
    assert main(given) == REFUSED
    found = json.loads((run / "promotion.json").read_text())
    assert not found["accepted"]
    assert found["motion_ratio"]["mean"] < 0.7
    assert found["win_rate"]["mean"] < 0.5
    assert [reason.split()[0] for reason in found["reasons"]] == ["it", "motion"]
    assert "; motion falls to" in capsys.readouterr().out
    assert list((tmp_path / "categories").iterdir()) == []


def test_people_decide_and_accepted_weights_ship(quick_family, tmp_path, capsys):
    old = quick_family / "categories" / "horse.safetensors"
    new, run = tmp_path / "new.safetensors", tmp_path / "run"
    tensors = load_tensors(old)
    nudged = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_tensors(new, nudged, {"stage": "dpo"})

    assert main(arguments(new, old, run, "--people")) == 2
    assert "captions.jsonl" in capsys.readouterr().err
    assert main(arguments(new, old, run, "--count", "5")) in (0, REFUSED)
    found = json.loads((run / "promotion.json").read_text())
    assert found["judge"] == "simulated (judging.judge)"
    assert found["motion_ratio"]["mean"] == pytest.approx(1, abs=0.1)
    assert len(found["clips"]) == found["pairs"] == 5
    assert (run / "sheet.png").stat().st_size > 0
    entries = {entry.video: entry for entry in read_clips(run)}
    assert len(entries) == 10
    assert len({entry.category for entry in entries.values()}) == 5  # the page compares within a category
    assert main(arguments(new, old, run, "--people")) == 2
    assert "compares none of these clips" in capsys.readouterr().err

    for i in range(5):
        names = [f"candidate/{i:04d}.mp4", f"against/{i:04d}.mp4"]
        answer = "a"
        if i % 2:
            names, answer = names[::-1], "b"  # whichever side the candidate is on
        a, b = ({"clip": name, "sha256": hash_file(run / name)} for name in names)
        sides = {f"{key}_{side}": value for side, clip in (("a", a), ("b", b)) for key, value in clip.items()}
        append(
            run / "ratings.jsonl",
            Comparison(rater="ann", category=entries[names[0]].category, answer=answer, **sides),
        )
    assert main(arguments(new, old, run, "--people", "--accept")) == 0
    output = capsys.readouterr().out
    assert "judge: people (1)" in output
    assert "accepted" in output
    shipped = tmp_path / "categories" / "horse.safetensors"
    assert shipped.read_bytes() == new.read_bytes()
    card = json.loads(shipped.with_suffix(".card.json").read_text())
    assert card["metrics"]["promotion"]["win_rate"]["mean"] == 1
    assert card["lineage"]["stage"] == "dpo"
    assert main(arguments(old, old, run, "--people")) == 2
    assert "were not made by" in capsys.readouterr().err


def test_mistakes_exit_with_2_and_one_line(quick_family, tmp_path, capsys):
    old = quick_family / "categories" / "horse.safetensors"
    for wrong, message in {
        ("--candidate", str(tmp_path / "none")): "there is no file",
        ("--against", str(tmp_path / "none")): "there are no weights",
        ("--count", "0"): "expected 1 or more",
        ("--category", "dragon"): "known: waterfall",
        ("--rated", str(tmp_path)): "captions.jsonl",
    }.items():
        assert main(arguments(old, old, tmp_path / "run", *wrong)) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(EvaluationError, match="at least one"):
        decide([])
