"""The command line of tools/serve.py."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_most.errors import ConfigError, UpstreamError
from megatron_most.runtime import get_logger
from megatron_most.serve.app import Protection, make_app
from megatron_most.serve.asked import Limits

_log = get_logger(__name__)
_TEACH = """\
Talk to a model: a page in the browser, and OpenAI's chat completions for programs.

  serve.py --model runs/stage2-instruct --codec data/codec --vocoder data/vocoder
  curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Say the following sentence. good morning"}]}'

The page is at http://localhost:8000. Without a codec the model cannot hear, without a vocoder it cannot be heard. On
the loopback (the default) nobody else can reach it; to offer it to a network, name the host and a key's variable:

  MOST_KEY=... serve.py --model ... --host 0.0.0.0 --key-env MOST_KEY

Messages hold text, input_audio parts (base64 of any usual sound format) and units parts ("[Hu7][Hu90]"). Ask to hear
the answer with "modalities": ["text", "audio"]; "stream": true sends tokens as they come, each with its modality and
the experts it uses, and sound as 16-bit samples."""


def run_serve(args: Sequence[str] | None = None) -> None:
    """Serve until stopped."""
    chosen = _parser().parse_args(args)
    key = _key(chosen.host, chosen.key_env)
    try:
        import uvicorn
    except ImportError as error:
        raise UpstreamError("uvicorn: not installed; install it with `pip install megatron-most[serve]`") from error
    from megatron_most.serve.listening import listening
    from megatron_most.serve.opening import open_partner

    with open_partner(
        chosen.model, tokenizer=chosen.tokenizer, codec=chosen.codec, vocoder=chosen.vocoder,
        templates=chosen.templates, device=chosen.device, name=chosen.name,
        encoder=chosen.codec_model, trust_templates=chosen.trust_templates, trust_codec=chosen.trust_codec,
    ) as partner:  # fmt: skip
        app = make_app(partner, _protection(chosen, key))
        _log.info("%s: http://%s:%d  (Ctrl-C ends it)", partner.name, _shown(chosen.host), chosen.port)
        told = {"host": chosen.host, "port": chosen.port, "log_level": "warning", "timeout_graceful_shutdown": 5}
        uvicorn.Server(listening(app, waiting=chosen.waiting, **told)).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve.py", description=_TEACH, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default, limits = Protection(), Limits()
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a run's folder, or one of its checkpoints")
    add("--tokenizer", type=Path, help="tokenizer.json or its folder, of the model's data; exported folders have one")
    add("--codec", type=Path, help="the folder of the codec whose units the model was trained on: then it hears")
    add(
        "--codec-model", type=Path,
        help="the HuBERT of the codec, or of the frames that a MoST-C model hears, where it has moved",
    )  # fmt: skip
    add("--vocoder", type=Path, help="the folder of a vocoder for this codec: then it speaks")
    add("--templates", help="by name or file; default: those of the model's data")
    add("--trust-codec", action="store_true", help="take units to be the model's where its folder does not say whose")
    add("--trust-templates", action="store_true", help="take --templates though the model has learnt others")
    add("--name", help="what the model is called; default: the folder's name")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8000, help="default: %(default)s; 0: any that is free")
    add(
        "--key-env", default="", metavar="NAME", help="the environment's variable with the key that requests must carry"
    )
    add("--max-tokens", type=int, default=limits.max_tokens, help="of one answer (default: %(default)s)")
    add(
        "--audio-s",
        type=float,
        default=limits.audio_s,
        help="seconds of recordings in a request (default: %(default)s)",
    )
    add("--rows", type=int, default=default.rows, help="answers generated together (default: %(default)s)")
    add("--waiting", type=int, default=default.waiting, help="requests that may wait (default: %(default)s)")
    add(
        "--rate",
        type=int,
        default=default.requests_a_minute,
        help="requests a minute from one address (default: %(default)s)",
    )
    return parser


def _protection(chosen: argparse.Namespace, key: str) -> Protection:
    for name in ("max_tokens", "audio_s", "rows", "waiting", "rate"):
        if getattr(chosen, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(chosen, name), "not above 0", "give more")
    if not 0 <= chosen.port < 65536:
        raise ConfigError("--port", chosen.port, "no port", "give 1 to 65535, or 0 for any")
    return Protection(
        limits=Limits(max_tokens=chosen.max_tokens, audio_s=chosen.audio_s),
        requests_a_minute=chosen.rate,
        rows=chosen.rows,
        waiting=chosen.waiting,
        key=key,
        hosts=("localhost", "127.0.0.1", "[::1]") if _is_loopback(chosen.host) else (),
    )


def _key(host: str, variable: str) -> str:
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ConfigError("--key-env", variable, "the environment has no such variable, or it is empty", "export it")
    if not key and not _is_loopback(host):
        raise ConfigError(
            "--host", host, "others could reach the server, and it asks for no key",
            "give --key-env NAME, or leave --host out",
        )  # fmt: skip
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
