"""Which weights this service runs, and where each came from: GET /models and a metric."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from huvidpo.catalog import Catalog, Category, Model, adapter_path
from service.files import sha256_of
from service.metrics import WEIGHTS

if TYPE_CHECKING:
    from service.job_rows import Job  # runners do not load the database's libraries

logger = logging.getLogger(__name__)


def describe(catalog: Catalog, model_name: str) -> dict[str, Any]:
    """The served model, its categories with their weights, and the styles. Raises InvalidRequest.

    `weights` of a category: file, bytes, sha256, adapter (SHA-256 of that of its preferences, null without
    one), lineage (as `training.merge` and `training.motion` wrote it) and metrics (of the card beside it);
    null where there are none and the base model is used.
    """
    model = catalog.model(model_name)
    return {
        "model": model.name,
        "description": model.description,
        "categories": [_category(model, category) for category in catalog.categories.values()],
        "styles": [{"name": style.name, "template": style.template} for style in catalog.styles.values()],
    }


def publish(category: str, file: Path | None, sha256: str) -> tuple[str, str, str]:
    """Sets the metric huvidpo_category_weights_info of a category that runs on `file`, None: on the base
    model. Returns the labels.
    """
    stage = _metadata(file).get("stage", "unknown") if file else "base"
    labels = category, stage, sha256
    WEIGHTS.labels(*labels).set(1)
    return labels


def weights_of(catalog: Catalog, model_name: str, category: str) -> dict[str, Any] | None:
    """What `describe` says of one category's weights. Raises InvalidRequest."""
    return _weights(catalog.model(model_name), catalog.category(category))


def of_job(job: "Job", sha256: str | None) -> dict[str, Any]:
    """Everything that made a job's clip, a file of this SHA-256. `clip` and `weights` are null until it is
    there; `weights` also where the category has none of its own.
    """
    report = job.report or {}
    asked = {name: value for name, value in job.request.items() if name != "first_frame"}
    file = sha256 and {"sha256": sha256, "bytes": report["bytes"], "media_type": report["media_type"]}
    return {
        "id": job.id,
        "object": "video.lineage",
        "remixed_from_video_id": job.source,
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "request": asked,
        "prompt_verdict": job.prompt_verdict,
        "frames_verdict": report.get("frames_verdict"),
        "model": report.get("model"),
        "weights": report.get("weights"),
        "first_frame": "made" if job.total > asked["steps"] else "uploaded",
        "first_frame_weights": report.get("first_frame_weights"),
        "backends": report.get("backends", {}),
        "seconds": report.get("seconds", {}),
        "clip": file,
    }


def sha256_of_files(folder: Path) -> str:
    """Of a network's file; of several, the hash of their hashes in order of their names."""
    hashes = [
        sha256_of(file) for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    ]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _category(model: Model, category: Category) -> dict[str, Any]:
    weights = _weights(model, category)
    return {"name": category.name, "motion_prompt": category.motion_prompt, "weights": weights}


def weights_file(weights: Path) -> Path | None:
    """The file itself, or the one in a folder of LAMP's layout."""
    if weights.is_dir():
        return next(iter(sorted(weights.rglob("diffusion_pytorch_model.*"), reverse=True)), None)
    return weights if weights.is_file() else None


def _weights(model: Model, category: Category) -> dict[str, Any] | None:
    file = weights_file(model.categories / category.weights)
    if file is None:
        return None
    sha256, adapter = sha256_of(file), adapter_path(file)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256,
        "adapter": sha256_of(adapter) if adapter.is_file() else None,
        "lineage": _metadata(file),
        "metrics": _metrics(file.with_suffix(".card.json"), sha256),
    }


def _metadata(file: Path) -> dict[str, str]:
    # huvidpo.checkpoint.read_metadata reads the same, but imports torch, which the gateway does without.
    try:
        with safe_open(file, framework="np") as tensors:
            return tensors.metadata() or {}
    except (OSError, SafetensorError):  # .bin files have none
        return {}


def _metrics(card: Path, sha256: str) -> dict[str, Any]:
    """Those of a card that was written for exactly this file."""
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        return facts["metrics"] if facts["sha256"] == sha256 else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read as a card: left out", card)
        return {}
