"""Every knob of the service, read once from environment variables HUVIDPO_<NAME>."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.config import BACKENDS, PRECISIONS

# Most that a gateway has at one runner: its client there has 100 connections, and signs of life need some.
AT_RUNNERS = 96


@dataclass(frozen=True)
class Settings:
    """Frozen; `from_env` raises ValueError naming the variable, what came and what is allowed."""

    model: str = DEFAULT_MODEL  # which model of the catalog to serve
    device: str = ""  # torch device of the runners; empty: CUDA when present, else CPU
    first_frame_device: str = ""  # of the first frame's runners alone: cuda:1, say; empty: as `device`
    video_device: str = ""  # of the video's alone
    dtype: str = ""  # float32, float16 or bfloat16; empty: float16 on CUDA; else bfloat16 if the CPU has it
    backend: str = "auto"  # of the UNets, one of huvidpo.config.BACKENDS; auto: the fastest there is
    threads: int = 0  # torch CPU threads per runner; 0: torch's choice
    reload_seconds: int = 5  # between two looks for new weights of categories, 0..86400; 0: never
    max_batch: int = 4  # requests denoised together, 1..64
    queue_size: int = 64  # requests waiting in one runner before it answers "queue full", 1..10000
    max_in_flight: int = 64  # requests one gateway holds at once, 1..95; see AT_RUNNERS
    max_steps: int = 100  # most denoising steps a request may ask for, 1..1000
    max_frames: int = 64  # most frames a request may ask for, 2..256
    max_body_mib: int = 16  # largest request body in MiB, 1..1024
    max_image_megapixels: int = 16  # largest uploaded first frame in millions of pixels, 1..200
    image_url_seconds: int = 0  # a picture that a request names by its address has to come, 0..60; 0: none is
    request_timeout: int = 600  # seconds until a request is given up with 504, 1..86400
    accept_timeout: int = 15  # seconds a runner has to accept a job before 503, 1..600
    grpc_port: int = 3001  # where gRPC is answered, 1..65535; 0: nowhere
    grpc_host: str = "127.0.0.1"  # address gRPC is bound to; unless given, what BENTOML_HOST says
    drain_seconds: int = 60  # on SIGTERM, seconds that accepted requests have to finish, 0..86400
    allowed_hosts: str = ""  # names the gateway answers to beside private ones, by commas; *: any
    body_seconds: int = 60  # a request's body has to come within, 1..86400
    api_keys: str = ""  # file of the keys that may call, see keys.py; empty: nobody needs one
    frame_check: str = ""  # module:function that looks at all that was made, see frame_check.py; empty: none
    frame_check_action: str = "block"  # the most that it may do: off, tag or block
    frame_check_seconds: int = 10  # it has to answer within, 1..3600
    policy_file: str = ""  # TOML file of what prompts may say, see policy.py; empty: anything
    data: str = "~/.local/share/huvidpo"  # folder of jobs and their clips
    database_url: str = ""  # postgresql://... of jobs that several gateways share; empty: SQLite in `data`
    store_url: str = ""  # s3://, gs://, az:// or file://: where the files of jobs live; empty: in `data`
    job_concurrency: int = 8  # jobs one gateway works on at once, 1..95; see AT_RUNNERS
    max_queued_jobs: int = 1000  # jobs that may wait, 1..1000000
    job_retention: int = 86_400  # seconds a job and its clip are kept once it has ended, 1..31536000
    lease_seconds: int = 10  # a gateway not heard of for so long has lost its jobs to the others, 2..3600
    webhook_secret: str = ""  # "whsec_" and base64, signs webhooks; empty: there are none
    webhook_allow: str = (
        ""  # origins webhooks may go to though not https or not public: http://10.0.0.5:80,...
    )
    c2pa_certificate: str = ""  # PEM file that clips are signed with, the signer's first; empty: they are not
    c2pa_key: str = ""  # PEM file of its private key
    c2pa_algorithm: str = "es256"  # of that key: es256, es384, es512, ps256, ps384, ps512 or ed25519
    c2pa_anchors: str = ""  # PEM file of authorities whose signatures are trusted when clips are verified
    log_format: str = "text"  # text, or json: an object a line
    commit: str = ""  # of the source that this is, for the metric huvidpo_build_info
    watermark: str = "auto"  # auto: every clip that is large enough; required: no clip without one; off
    watermark_key: str = ""  # file of the secret they are written and read with; empty: one in `data`
    rating_clips: str = ""  # folder of clips that people rate at /rate; empty: no such page

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{_variable(name)}: got {value}, allowed {low} to {high}")
        if self.max_in_flight + self.job_concurrency > AT_RUNNERS:
            raise ValueError(
                f"HUVIDPO_MAX_IN_FLIGHT and HUVIDPO_JOB_CONCURRENCY: got {self.max_in_flight} and "
                f"{self.job_concurrency}, together at most {AT_RUNNERS} are allowed"
            )
        if self.dtype not in ("", *PRECISIONS):
            raise ValueError(f"HUVIDPO_DTYPE: got {self.dtype!r}, allowed {', '.join(PRECISIONS)} or empty")
        if self.backend not in BACKENDS:
            raise ValueError(f"HUVIDPO_BACKEND: got {self.backend!r}, allowed {', '.join(BACKENDS)}")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"HUVIDPO_LOG_FORMAT: got {self.log_format!r}, allowed text or json")
        if self.watermark not in ("auto", "required", "off"):
            raise ValueError(f"HUVIDPO_WATERMARK: got {self.watermark!r}, allowed auto, required, off")
        if self.frame_check and not _FUNCTION.fullmatch(self.frame_check):
            raise ValueError(f"HUVIDPO_FRAME_CHECK: got {self.frame_check!r}, expected module:function")
        if self.frame_check_action not in ("off", "tag", "block"):
            got = f"got {self.frame_check_action!r}, allowed off, tag, block"
            raise ValueError(f"HUVIDPO_FRAME_CHECK_ACTION: {got}")
        if self.c2pa_algorithm not in _ALGORITHMS:
            got = f"got {self.c2pa_algorithm!r}, allowed {', '.join(_ALGORITHMS)}"
            raise ValueError(f"HUVIDPO_C2PA_ALGORITHM: {got}")
        if self.store_url and not _STORE.fullmatch(self.store_url):
            raise ValueError(  # what came is not said: it may hold a password
                "HUVIDPO_STORE_URL: expected s3://bucket/prefix, gs://bucket/prefix, az://container/prefix "
                "or file:///folder, without user, password, ? or #: credentials come from the environment"
            )
        if self.webhook_secret and not _SECRET.fullmatch(self.webhook_secret):
            raise ValueError(
                "HUVIDPO_WEBHOOK_SECRET: expected whsec_ and the base64 of 24 bytes or more: "
                'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
            )

    @property
    def checks_frames(self) -> bool:
        """Whether nothing is given out unless its frames were checked."""
        return bool(self.frame_check) and self.frame_check_action == "block"

    def device_of(self, stage: str) -> str:
        """Of "first_frame" or "video"; empty: CUDA when present, else CPU."""
        return getattr(self, f"{stage}_device") or self.device

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        given: dict[str, Any] = {
            f.name: env[_variable(f.name)] for f in fields(cls) if _variable(f.name) in env
        }
        for name in given.keys() & _RANGES.keys():
            given[name] = _whole(name, given[name])
        given.setdefault("grpc_host", env.get("BENTOML_HOST", "127.0.0.1"))
        return cls(**given)


_ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
_FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")
_STORE = re.compile(r"(s3|gs|az)://[^@?#/]+(/[^@?#]*)?|file:///[^?#]+")
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{32,}={0,2}")
_RANGES = {
    "threads": (0, 1024),
    "reload_seconds": (0, 86_400),
    "max_batch": (1, 64),
    "queue_size": (1, 10_000),
    "max_in_flight": (1, 95),
    "max_steps": (1, 1000),
    "max_frames": (2, 256),
    "max_body_mib": (1, 1024),
    "max_image_megapixels": (1, 200),
    "body_seconds": (1, 86_400),
    "frame_check_seconds": (1, 3600),
    "image_url_seconds": (0, 60),
    "request_timeout": (1, 86_400),
    "accept_timeout": (1, 600),
    "grpc_port": (0, 65_535),
    "job_concurrency": (1, 95),
    "max_queued_jobs": (1, 1_000_000),
    "job_retention": (1, 31_536_000),
    "lease_seconds": (2, 3600),
    "drain_seconds": (0, 86_400),
}


def _variable(field: str) -> str:
    return f"HUVIDPO_{field.upper()}"


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{_variable(name)}: got {text!r}, expected a whole number") from None
