"""The gate of the built-in family: by the learned judge and the rendered truth."""

import json

import pytest

from huvidpo.catalog import load_catalog
from huvidpo.errors import InvalidRequest
from judging.judge import load_judge
from judging.promote import REFUSED, decide, judge_by_exam, judge_simulated
from preferences.metrics import EvaluationError
from tiny import promote
from tiny.common import FAMILY
from tiny.judge.tricks import TRICKS, fake
from tiny.world import render


@pytest.fixture(scope="module")
def exam():
    return promote.examine(*_horse(), 1, 1, [])


@pytest.fixture(scope="module")
def clean():
    """The truth of the exam."""
    return [render(scene) for scene in promote.scenes("horse", 1, 1, [])]


def test_what_games_the_stated_rule_is_refused(exam, clean):
    """A still that rocks: the stated rule prefers it to the truth itself, the gate refuses it."""
    catalog = load_catalog()
    clips = {"candidate": [fake(TRICKS["a still rocking"], t, t, 1.2, 0) for t in clean], "against": clean}
    rule = judge_simulated(exam.requests, catalog, clips, load_judge(FAMILY / "clip"))
    assert all(pair.margin > 0 for pair in rule)
    decision = decide(judge_by_exam(exam, catalog, clips))
    assert decision.win_rate.mean == 0
    assert decision.beside[promote.TRUTH].mean == 0
    assert any(reason.startswith(f"by {promote.TRUTH} it wins 0%") for reason in decision.reasons)


def test_the_gate_prefers_what_is_nearer_to_the_truth(exam, clean):
    """By both measures, and refused the other way round."""
    worse = [fake(TRICKS["blur"], t, t, 1.5, 0) for t in clean]
    pairs = judge_by_exam(exam, load_catalog(), {"candidate": clean, "against": worse})
    assert decide(pairs).beside[promote.TRUTH].mean == 1
    assert all(pair.margin > 0 for pair in pairs)
    back = judge_by_exam(exam, load_catalog(), {"candidate": worse, "against": clean})
    assert not decide(back).accepted


def test_the_exam_leaves_out_rated_prompts_and_refuses_what_it_cannot_judge(capsys, tmp_path):
    prompts = {request.prompt for request in promote.examine(*_horse(), 2, 1, []).requests}
    others = {request.prompt for request in promote.examine(*_horse(), 2, 1, sorted(prompts)).requests}
    assert not prompts & others
    with pytest.raises(InvalidRequest, match=r"judging\.promote"):
        promote.scenes("candle", 1, 0, [])
    weights = str(FAMILY / "categories" / "horse.safetensors")
    command = ["--category", "horse", "--candidate", weights, "--run", str(tmp_path), "--count", "2"]
    assert promote.promote.main([*command, "--like", str(tmp_path)], promote.examine, "tiny.promote") == 2
    assert "leave it out" in capsys.readouterr().err


def _horse():
    catalog = load_catalog()
    return catalog.model("tiny"), catalog.category("horse")


def test_the_command_judges_by_the_truth_and_says_so(tmp_path, monkeypatch, capsys):
    """Both sides alike: no pair is won by either, so nothing is accepted."""
    truths = [render(scene) for scene in promote.scenes("horse", 1, promote.promote.GATE_SEED, [])]
    both = dict.fromkeys(("candidate", "against"), truths)
    monkeypatch.setattr(promote.promote, "render_both", lambda *_: both)
    weights = str(FAMILY / "categories" / "horse.safetensors")
    command = ["--category", "horse", "--candidate", weights, "--run", str(tmp_path), "--count", "1"]
    assert promote.promote.main(command, promote.examine, "tiny.promote") == REFUSED
    verdict = json.loads((tmp_path / "promotion.json").read_text(encoding="utf-8"))
    assert verdict["judge"].startswith("learned")
    assert verdict["beside"][promote.TRUTH]["mean"] == 0.5
    assert "PSNR to the rendered truth" in capsys.readouterr().out


def test_no_pairs_are_no_verdict():
    with pytest.raises(EvaluationError):
        decide([])
