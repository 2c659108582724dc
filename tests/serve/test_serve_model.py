"""A trained model behind the server: heard, spoken and told token by token, as generation without a server has it."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from megatron_most.generate import Settings, generate
from megatron_most.runtime import Launch
from megatron_most.serve.opening import open_partner
from megatron_most.serve.partner import Turn
from tests.harness import launch_ranks
from tests.serve.partners import serving
from tests.talkable import make_talkable


def talk(launch: Launch, root: Path) -> int:
    with (
        open_partner(
            root / "run", tokenizer=root / "data" / "tokenizer", codec=root / "data" / "codec",
            vocoder=root / "vocoder", templates=None, device="cpu", name=None,
        ) as partner,
        serving(partner) as server,
    ):  # fmt: skip
        wave, rate = soundfile.read(root / "hello.wav", dtype="float32")
        hello = {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode((root / "hello.wav").read_bytes()).decode()},
        }
        prompt = partner.prompt([Turn("user", ("the quick", wave))])
        assert rate == partner.sample_rate
        model = partner._talker.opened.model
        for seed in range(50):  # until one of them speaks
            [alone] = generate(model, [prompt], Settings(max_new_tokens=30, temperature=1.0, seed=seed))
            if sum(id in partner.tokens.unit_ids for id in alone.ids) > 3:
                break
        asked = {"temperature": 1.0, "seed": seed, "max_tokens": 30}
        status, answer = server.ask(
            [{"type": "text", "text": "the quick"}, hello], **asked, modalities=["text", "audio"]
        )
        assert status == 200, answer
        tokens = answer["most"]["tokens"]
        assert [token["id"] for token in tokens] == alone.ids
        assert {(token["modality"], token["experts"]) for token in tokens} <= {("text", "text"), ("audio", "audio")}
        heard, _ = soundfile.read(io.BytesIO(base64.b64decode(answer["choices"][0]["message"]["audio"]["data"])))
        units = [token["text"] for token in tokens if token["is_unit"]]
        assert len(units) > 3 and len(heard) > 0.03 * rate * len(units) and np.abs(heard).max() > 0.005
        with ThreadPoolExecutor() as pool:  # what leaves no room for an answer disturbs nobody
            others = [pool.submit(server.ask, "the quick", **asked) for _ in range(4)]
            status, answer = server.ask("the quick fox " * 1500, **asked)
            assert status == 400 and "positions; shorten it" in answer["error"]["message"]
            assert [other.result()[0] for other in others] == [200] * 4
        status, answer = server.ask("the quick", **asked)
        assert status == 200 and not any(token["is_unit"] for token in answer["most"]["tokens"])
    return 0


def test_a_model_is_heard_and_hears_through_the_server(tmp_path: Path) -> None:
    root = make_talkable(tmp_path)
    assert launch_ranks(talk, 1, root) == [0]
