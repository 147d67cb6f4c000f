"""Block weights that mean no block of a model are warned of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from lora_runtime.idle_blocks import warn_of_idle_blocks
from lora_runtime.pipelines import view
from lora_runtime.problems import Problems
from lora_runtime.prompt import parse_prompt


def model(*paths: str) -> SimpleNamespace:
    """Return a pipeline whose denoiser has modules at these paths."""
    root = nn.Module()
    for path in paths:
        place = root
        for name in path.split("."):
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place._modules[name]  # type: ignore[assignment]
    return SimpleNamespace(components={"transformer": root, "text_encoder": nn.Linear(1, 1)})


FLUX = model("transformer_blocks.0.attn", "transformer_blocks.1.attn", "single_transformer_blocks.0.attn", "x_embedder")
WAN = model("blocks.0.attn1.to_q")
UNET = model("down_blocks.0.attentions.0.attn1", "mid_block.attentions.0", "up_blocks.1.attentions.0")
FLUX_LIST = "lbw=" + ",".join(["1", "1", "0", *["1"] * 58])
SD_LIST = "lbw=1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"


@pytest.mark.parametrize(("pipe", "tag", "idle"), [
    (FLUX, SD_LIST, "a list for the blocks of a UNet"),
    (FLUX, "lbw=MIDD", "a list for the blocks of a UNet"),
    (FLUX, "OUT05=0", "OUT05"),
    (FLUX, "in=0.5:mid=1:out=0.2", "in=, mid=, out="),
    (FLUX, "D00=0:S00=0", ""),
    (FLUX, "IN=0", ""),
    (WAN, SD_LIST, "a list for the blocks of a UNet"),
    (WAN, "D00=0:S00=0", "D00, S00"),
    (WAN, "*attn1*=0", ""),
    (WAN, "*attn9*=0", "*attn9*"),
    (WAN, "BASE=0", ""),
    (UNET, SD_LIST, ""),
    (UNET, FLUX_LIST, "a list for the blocks of a Flux but for its IN and OUT"),
    (UNET, "lbw=FLUXALL", "a list for the blocks of a Flux but for its IN and OUT"),
    (UNET, "lbw=FLUXALL:*attn1*=0", "a list for the blocks of a Flux but for its IN and OUT"),
    (UNET, f"{SD_LIST}:*attn9*=0", "*attn9*"),
    (WAN, FLUX_LIST, "a list for the blocks of a Flux"),
    (FLUX, FLUX_LIST, ""),
    (FLUX, f"{SD_LIST}:*attn*=0", "a list for the blocks of a UNet"),
    (UNET, "M00=0", ""),
    (UNET, "IN01=0:D00=0", "D00"),
    (UNET, "in=0.5:mid=1:out=0.2", ""),
])  # fmt: skip
def test_a_rule_that_means_no_block_of_the_model_is_warned_of(pipe: SimpleNamespace, tag: str, idle: str) -> None:
    problems = Problems(strict=False)
    warn_of_idle_blocks([parse_prompt(f"<lora:ink:1:{tag}>")], view(pipe), problems)
    messages = [diagnostic.message for diagnostic in problems.diagnostics]
    assert [message.partition(":")[0] for message in messages] == ['"ink"'] * bool(idle)
    for message in messages:
        assert f"no block of this model is meant by {idle}:" in message
        assert "full strength" in message


@pytest.mark.parametrize(("pipe", "has"), [
    (FLUX, "its blocks are IN, D00-D01, S00"),
    (WAN, "its blocks have no names"),
    (UNET, "its blocks are IN01, M00, OUT03"),
])  # fmt: skip
def test_the_hint_names_the_blocks_that_there_are(pipe: SimpleNamespace, has: str) -> None:
    problems = Problems(strict=False)
    warn_of_idle_blocks([parse_prompt("<lora:ink:1:OUT09=0>")], view(pipe), problems)
    assert problems.diagnostics[0].hint.startswith(has)
