"""Block weights in tags: lists, presets, element rules, readable rules, random values, the parts of SD.Next."""

from pathlib import Path

import pytest

from lora_runtime.prompt import BlockWeights, Curve, parse_prompt
from lora_runtime.prompt.block_weights import Draw, Rule
from lora_runtime.prompt.presets import MOST_BYTES, common_presets, load_presets

# The 17 numbers of MIDD stand for BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03-OUT11.
MIDD = "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
MIDD_BLOCKS = {"BASE", "IN05", "IN07", "IN08", "M00", "OUT03", "OUT04", "OUT05", "OUT06"}

PLACES = {
    "BASE": ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
    "T5": ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q"),
    **{f"IN{number:02d}": ("unet", f"input_blocks.{number}.0.in_layers.2") for number in range(12)},
    "M00": ("unet", "middle_block.1.transformer_blocks.0.attn1.to_q"),
    **{f"OUT{number:02d}": ("unet", f"output_blocks.{number}.0.in_layers.2") for number in range(12)},
    **{f"D{number:02d}": ("transformer", f"double_blocks.{number}.img_attn.qkv") for number in range(19)},
    **{f"S{number:02d}": ("transformer", f"single_blocks.{number}.linear1") for number in range(38)},
    "IN": ("transformer", "img_in"),
    "OUT": ("transformer", "final_layer.linear"),
    None: ("unet", "time_embed.0"),
}
SD = {
    name for name in PLACES if name and (name in ("BASE", "M00") or (name[:2] in ("IN", "OU") and name[-1].isdigit()))
}


def blocks(source: str, presets: dict[str, str] | None = None) -> BlockWeights:
    (tag,) = parse_prompt(source, presets=presets).tags
    assert tag.conditions.blocks is not None
    return tag.conditions.blocks


def ratios(source: str, seed: int | None = None) -> dict[str | None, float | Curve]:
    found = blocks(source)
    return {name: found.ratio(*place, seed) for name, place in PLACES.items()}


def findings(source: str) -> list[tuple[str, str, str, str]]:
    return [(d.severity, source[slice(*d.span)], d.message, d.hint) for d in parse_prompt(source).diagnostics]


@pytest.mark.parametrize("field", [f"lbw={MIDD}", "lbw=MIDD", f"w={MIDD}", MIDD, "MIDD", f"lbw= {MIDD} "])
def test_a_list_of_seventeen_weighs_the_blocks_of_sd(field: str) -> None:
    found = ratios(f"<lora:x:0.7:{field}>")
    assert {name for name in SD if found[name] == 1} == MIDD_BLOCKS
    assert {name for name in SD if found[name] == 0} == SD - MIDD_BLOCKS
    assert found[None] == found["D00"] == 1  # no block of this layout
    (tag,) = parse_prompt(f"<lora:x:0.7:{field}>").tags
    assert (tag.te, tag.unet) == (0.7, 0.7)


@pytest.mark.parametrize(
    ("count", "order"),
    [
        (12, "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"),
        (17, "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"),
        (
            20,
            " ".join(["BASE", *(f"IN0{n}" for n in range(9)), "M00", *(f"OUT0{n}" for n in range(9))]),
        ),
    ],
)
def test_a_list_gives_its_numbers_in_the_order_of_its_layout(count: int, order: str) -> None:
    names = order.split()
    found = ratios("<lora:x:lbw=" + ",".join(str(index + 1) for index in range(count)) + ">")
    assert [found[name] for name in names] == [index + 1 for index in range(count)]
    assert {found[name] for name in SD - {*names}} == {0}


def test_a_list_of_twenty_six_gives_every_block_of_a_unet() -> None:
    found = ratios("<lora:x:lbw=" + ",".join(str(index) for index in range(26)) + ">")
    order = ["BASE", *(f"IN{n:02d}" for n in range(12)), "M00", *(f"OUT{n:02d}" for n in range(12))]
    assert [found[name] for name in order] == [*range(26)]
    assert found["T5"] == 0  # all text encoders are BASE


def test_a_list_of_sixty_one_gives_every_block_of_flux() -> None:
    found = ratios("<lora:x:lbw=" + ",".join(str(index) for index in range(61)) + ">")
    order = ["BASE", "T5", "IN", *(f"D{n:02d}" for n in range(19)), *(f"S{n:02d}" for n in range(38)), "OUT"]
    assert [found[name] for name in order] == [*range(61)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("IN04=0", {"IN04": 0}),
        ("IN04-06=0.5", {"IN04": 0.5, "IN05": 0.5, "IN06": 0.5}),
        ("IN10-OUT01=0", dict.fromkeys(["IN10", "IN11", "M00", "OUT00", "OUT01"], 0)),
        ("BASE=0", {"BASE": 0, "T5": 0}),
        ("CLIP=0", {"BASE": 0}),
        ("T5=0", {"T5": 0}),
        ("M00=0.1", {"M00": 0.1}),
        ("M=0.1", {"M00": 0.1}),
        ("OUT=0.2", {"OUT": 0.2, **{f"OUT{n:02d}": 0.2 for n in range(12)}}),
        ("IN=0.2", {"IN": 0.2, **{f"IN{n:02d}": 0.2 for n in range(12)}}),
        ("D00-18=0", {f"D{n:02d}": 0 for n in range(19)}),
        ("D=0", {f"D{n:02d}": 0 for n in range(19)}),
        ("S=0.3:S12=0.4", {**{f"S{n:02d}": 0.3 for n in range(38)}, "S12": 0.4}),
        ("S12=0.4:S=0.3", {f"S{n:02d}": 0.3 for n in range(38)}),
        ("IN01 OUT03=0", {"IN01": 0, "OUT03": 0}),
        ("NOT IN OUT D S=0", {"BASE": 0, "T5": 0, "M00": 0}),
        ("*attn1*=0", {"M00": 0}),
        ("*attn1_to_q=0", {"M00": 0}),
        ("time_embed*=0", {None: 0}),
        ("M00 *attn2*=0", {}),
        ("NOT M00 *attn1*=0", {}),
        ("*=0.5", dict.fromkeys(PLACES, 0.5)),
    ],
)
def test_rules_can_be_read(fields: str, expected: dict[str | None, float]) -> None:
    assert ratios(f"<lora:x:0.7:{fields}>") == dict.fromkeys(PLACES, 1) | expected
    assert findings(f"<lora:x:0.7:{fields}>") == []


def test_a_rule_counts_after_the_list() -> None:
    found = ratios("<lora:x:M00=0.5:lbwe=ATTNDEEPOFF:lbw=ALL0.5>")
    assert (found["BASE"], found["M00"], found["IN05"]) == (0.5, 0.5, 0.5)
    found = ratios("<lora:x:lbw=ALL0.5:lbwe=ATTNDEEPOFF>")
    assert (found["BASE"], found["M00"], found["IN05"]) == (0.5, 0, 0.5)  # only the middle place is an attention's


@pytest.mark.parametrize(
    "field", ["lbwe=ATTNDEEPOFF", "lbwe=IN05-OUT05;attn;0", "lbwe=IN05-OUT05;attn;1,M00;attn1 attn2;0"]
)
def test_element_rules_weigh_modules_by_a_part_of_their_name(field: str) -> None:
    found = blocks(f"<lora:x:{field}>")
    assert found.ratio("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q") == 0
    assert found.ratio("unet", "mid_block.resnets.0.conv1") == 1
    assert found.ratio("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q") == 1


def test_element_rules_without_blocks_and_elements_are_for_everything() -> None:
    assert set(ratios("<lora:x:lbwe=;;0.5>").values()) == {0.5}


@pytest.mark.parametrize(
    ("items", "x", "expected"), [("X", "0.3", 0.3), ("X+0.2", "0.3", 0.5), ("X-0.2", "1", 0.8), ("X", "-1", -1)]
)
def test_x_is_the_value_of_its_argument(items: str, x: str, expected: float) -> None:
    assert ratios(f"<lora:x:lbw={items},{'1,' * 10}1:x={x}>")["BASE"] == pytest.approx(expected, abs=1e-9)
    assert ratios(f"<lora:x:x={x}:BASE={items}>")["BASE"] == pytest.approx(expected, abs=1e-9)


def test_random_values_depend_on_the_seed_and_on_nothing_else() -> None:
    source = "<lora:x:lbw=R,U,R,U,R,U,R,U,R,U,R,U>"
    assert blocks(source).random
    assert ratios(source, 7) == ratios(f"a cat {source}", 7)
    assert ratios(source, None) == ratios(source, 0)
    assert ratios(source, 7) != ratios(source, 8)
    assert ratios(source, 7) != ratios(source.replace("lora:x", "lora:y"), 7)
    drawn = [ratios(source, seed) for seed in range(200)]
    uniform = [float(found["BASE"]) for found in drawn]  # type: ignore[arg-type]
    wide = [float(found["IN04"]) for found in drawn]  # type: ignore[arg-type]
    assert 0 <= min(uniform) < 0.1 < 0.9 < max(uniform) <= 1
    assert -0.5 <= min(wide) < -0.4 < 1.4 < max(wide) <= 1.5
    assert not blocks("<lora:x:lbw=ALL>").random


def test_a_ratio_may_have_keyframes() -> None:
    curve = "1@0,0@1"
    assert str(ratios(f"<lora:x:IN04={curve}>")["IN04"]) == curve
    assert str(ratios(f"<lora:x:lbw=1@0;0@1{',1' * 11}>")["BASE"]) == curve


def test_the_parts_of_sd_next_replace_the_strength_of_the_unet() -> None:
    found = blocks("<lora:x:0.7:in=0.1:mid=0.2:out=0@0,1@1>")
    assert found.strength(*PLACES["IN04"]) == 0.1
    assert found.strength(*PLACES["M00"]) == 0.2
    assert str(found.strength(*PLACES["OUT04"])) == "0@0,1@1"
    assert [found.strength(*PLACES[name]) for name in ("BASE", "IN", "OUT", "D01", None)] == [None] * 5
    assert found.ratio(*PLACES["IN04"]) == 1
    assert blocks("<lora:x:in=0.1>").strength(*PLACES["OUT04"]) is None


BARE_X = 'the block weights "X" has no value: there is no x= in the tag'
BLOCKS = "blocks are BASE, IN00-IN11, M00, OUT00-OUT11"
COUNTS = "write 12 (SDXL), 17 (SD), 20 (all of SDXL), 26 (all of SD) or 61 (Flux) numbers"


@pytest.mark.parametrize(
    ("field", "place", "message", "hint"),
    [
        ("lbw=MIDDD", "MIDDD", 'the block weights "MIDDD" is no preset that is known', "did you mean MIDD?"),
        ("lbw=outs", "outs", 'the block weights "outs" is no preset that is known', "did you mean OUTS?"),
        ("lbw=XYZ", "XYZ", 'the block weights "XYZ" is a name that plots fill in', "write a preset or a list"),
        ("lbw=", "", "the block weights are empty", f"write a preset, or {COUNTS[6:]}"),
        ("lbw=1", "1", "the block weights have 1 number", COUNTS),
        ("lbw=1,0,0", "1,0,0", "the block weights have 3 numbers", COUNTS),
        (
            "lbw=" + ",".join("1" * 21),
            ",".join("1" * 21),
            "the block weights have 21 numbers; lists of the Inspire Pack are laid out otherwise",
            COUNTS,
        ),
        ("lbw=a" + ",1" * 11, "a", 'the block weights "a" is not a number', "write a number such as 0.7"),
        ("lbw=X" + ",1" * 11, "X", BARE_X, "write x=0.5"),
        (
            "lbw=ATTNDEEPOFF",
            "ATTNDEEPOFF",
            'the block weights "ATTNDEEPOFF" are rules for elements',
            "write lbwe=ATTNDEEPOFF",
        ),
        ("lbwe=MIDD", "MIDD", 'the element weights "MIDD" is a list of blocks', "write lbw=MIDD"),
        (
            "lbwe=ATTNDEEP",
            "ATTNDEEP",
            'the element weights "ATTNDEEP" is no preset that is known',
            "did you mean ATTNDEEPON?",
        ),
        (
            "lbwe=IN05;0",
            "IN05;0",
            'the element weights "IN05;0" is not BLOCKS;ELEMENTS;WEIGHT',
            "write IN05-OUT05;attn;0",
        ),
        ("lbwe=IN12;attn;0", "IN12;attn;0", 'the element weights "IN12;attn;0": there is no block "IN12"', BLOCKS),
        ("lbwe=cat;attn;0", "cat;attn;0", 'the element weights "cat" are not blocks', BLOCKS),
        (
            "lbwe=;NOT attn;0",
            ";NOT attn;0",
            'the element weights "NOT attn" leaves elements out, which is not read here',
            "name the elements meant",
        ),
        ("IN04=a", "a", 'the ratio "a" is not a number', "write a number such as 0.7"),
    ],
)
def test_a_field_that_cannot_be_read_is_left_out_and_said(field: str, place: str, message: str, hint: str) -> None:
    source = f"<lora:x:0.7:{field}>"
    (tag,) = parse_prompt(source).tags
    assert (tag.unet, tag.conditions.blocks) == (0.7, None)
    assert findings(source) == [("warning", place, f"{message}; this field is ignored", hint)]


@pytest.mark.parametrize("key", ["IN12", "OUT04-12", "OUT04-02", "D19", "S38", "M01", "IN04 IN12", "T5-6", "D04-IN05"])
def test_an_unknown_block_is_said(key: str) -> None:
    source = f"<lora:x:0.7:{key}=0>"
    (found,) = findings(source)
    assert found[:2] == ("warning", f"{key}=0")
    assert found[2].startswith("there is no block ")
    assert found[2].endswith("; this field is ignored")


@pytest.mark.parametrize("key", ["attn1", "NOT", "a*b", "IN a*b", "in04", "x" * 201 + "*", "blocks 4"])
def test_what_is_neither_block_nor_pattern_is_no_argument(key: str) -> None:
    (found,) = findings(f"<lora:x:0.7:{key}=0>")
    assert found[2].startswith("there is no argument ")


def test_x_without_effect_is_said() -> None:
    assert findings("<lora:x:1:lbw=ALL:x=0.5>")[0][:3] == (
        *("warning", "0.5", '"x=" has no effect: no block weight of this tag has an X'),
    )


def test_what_is_said_about_an_item_stands_at_the_item() -> None:
    source = "<lora:x:lbw=1,1@1;0@0" + ",1" * 10 + ">"
    assert [found[:2] for found in findings(source)] == [("info", "1@1;0@0")]


def test_ones_own_presets_take_the_place_of_the_common_ones() -> None:
    presets = {
        "MINE": ",".join("0" * 17),
        "SOFT": "OUT:attn:0.5",
        "BAD": ",".join("a" * 17),
        "ODD": "1@1;0@0" + ",1" * 16,
    }
    assert blocks("<lora:x:lbw=MINE>", presets).ratio(*PLACES["IN04"]) == 0
    assert blocks("<lora:x:1:MINE>", presets).ratio(*PLACES["IN04"]) == 0
    assert blocks("<lora:x:lbwe=SOFT>", presets).rules == (Rule("OUT *attn*", 0.5),)
    (diagnostic,) = parse_prompt("<lora:x:lbw=MIDD>", presets=presets).diagnostics
    assert diagnostic.hint == "presets are MINE, SOFT, BAD, ODD"
    (diagnostic,) = parse_prompt("<lora:x:lbw=BAD>", presets=presets).diagnostics
    assert diagnostic.span == (12, 15)
    assert parse_prompt("<lora:x:lbw=ODD>", presets=presets).diagnostics == ()


def test_the_common_presets_are_those_that_circulate() -> None:
    # Read by a person from DEF_WEIGHT_PRESET and DEF_ELEMENTAL: ones by the places that have them.
    ones = {"NONE": 0, "ALL": 17, "INS": 4, "IND": 4, "INALL": 7, "MIDD": 9, "OUTD": 5, "OUTS": 6, "OUTALL": 10}
    presets = common_presets()
    assert {name: presets[name].split(",").count("1") for name in ones} == ones
    assert presets["MIDD"] == MIDD
    assert presets["FLUXALL"] == ",".join("1" * 61)
    # Those of the Inspire Pack for SDXL that have twelve numbers, by the blocks that are not 0.
    sdxl = {"NONE": "", "ALL": "BASE IN M00 OUT", "INALL": "BASE IN", "MIDALL": "BASE M00", "OUTALL": "BASE OUT"}
    for name, on in sdxl.items():
        (tag,) = parse_prompt(f"<lora:x:lbw=SDXL-{name}>").tags
        assert tag.conditions.blocks is not None
        listed = {"BASE", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT0{number}" for number in range(6))}
        meant = {block for block in listed if block.startswith(tuple(on.split()))} if on else set()
        assert {rule.where for rule in tag.conditions.blocks.rules if rule.ratio == 1} == meant
    more = {"ALL0.5", "FLUXALL", "ATTNDEEPON", "ATTNDEEPOFF", "PROJDEEPOFF"}
    assert set(presets) - set(ones) == more | {f"SDXL-{name}" for name in sdxl}
    assert presets["ATTNDEEPOFF"] == "IN05-OUT05:attn:0"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FLUX", "did you mean FLUXALL?"),
        ("SD-MIDD", "did you mean MIDD?"),
        ("FLUX-DBL-FRONT", "write a rule for each part, as in D00-06=1:D07-18=0"),
    ],
)
def test_presets_that_circulate_and_are_not_read_have_a_way_out(name: str, hint: str) -> None:
    (told,) = parse_prompt(f"<lora:x:lbw={name}>").diagnostics
    assert (told.severity, told.hint) == ("warning", hint)


@pytest.mark.parametrize("name", sorted(common_presets()))
def test_every_common_preset_can_be_used(name: str) -> None:
    key = "lbwe" if ":" in common_presets()[name] else "lbw"
    assert findings(f"<lora:x:{key}={name}>") == []


def test_files_of_presets_are_read_with_reasons_for_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "lbwpresets.txt"
    path.write_text(
        "\ufeffMINE:" + ",".join("1" * 17) + "\n"
        "just a comment\n"
        "OLD:1,2 # a comment\n"
        "SHORT:1,0,0\n"
        ":1,0\n"
        "XYZ:" + ",".join("1" * 17) + "\n"
        "IN05:attn:0\n"
        "\n"
        "SOFT:IN05-OUT05:attn:0.5,\n"
        "OUT06:attn:0.25\n"
        "\n"
        "OUT07:attn:0\n"
        "TWO:IN05:attn:1,IN06:attn:2\n",
        encoding="utf-8",
    )
    presets, reasons = load_presets(path)
    assert presets == {
        "MINE": ",".join("1" * 17),
        "SOFT": "IN05-OUT05:attn:0.5,OUT06:attn:0.25",
        "TWO": "IN05:attn:1,IN06:attn:2",
    }
    assert reasons == (
        'line 4: "SHORT" has 3 numbers; lists have 12, 17, 20, 26, 61',
        "line 5: there is no name",
        'line 6: "XYZ" is a name that plots fill in',
        'line 7: "IN05:attn:0" has no name before its blocks',
        'line 12: "OUT07:attn:0" has no name before its blocks',
    )
    assert blocks("<lora:x:lbwe=SOFT>", dict(presets)).rules == (
        *(Rule("IN05-OUT05 *attn*", 0.5), Rule("OUT06 *attn*", 0.25)),
    )


def test_a_file_of_presets_may_be_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    path.write_bytes(b"MINE:" + b"1," * (MOST_BYTES // 2))
    assert load_presets(path) == ({}, (f"huge.txt has more than {MOST_BYTES} bytes",))


def test_a_drawn_value_is_the_same_everywhere() -> None:
    # printf '0\nx\n0' | sha256sum begins with ae7ab1121007: that many 2**-48ths.
    assert Draw("R").value(None, "x\n0") == 0.682
    assert Draw("U").value(0, "x\n0") == 0.863
    assert str(Draw("U")) == "U"


def test_block_weights_can_be_keys() -> None:
    assert {blocks("<lora:x:lbw=MIDD>"): 1}[blocks("<lora:x:MIDD>")] == 1
