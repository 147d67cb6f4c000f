"""What may happen to the networks. An operation does it and tells what to expect; False if it has no meaning now."""

from __future__ import annotations

import asyncio
import copy
import io
import sys
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

import lora_runtime
from lora_runtime.applied import Applied
from soak.owners import ROUNDING, Dose, Expected, Owner, Weights, Wrong, output
from soak.world import FILES, Pipeline, folder, networks, probe, reference

ROOTS = {  # by name: the components, by the number of the network
    "first": {"transformer": 0, "text_encoder": 2},
    "second": {"transformer": 1, "text_encoder": 2},  # shares the text encoder
    "alone": {"transformer": 0},
}
PATIENCE = 20.0  # seconds until a thread counts as hanging


class Stage:
    """The networks of one sequence, what they should show, and what is kept on the way to look at later."""

    def __init__(self) -> None:
        modules = networks()
        bases = [{name: p.detach().clone() for name, p in module.named_parameters()} for module in modules]
        self.weights = [
            Weights(kind, module, {name: [value] for name, value in base.items()}, dict(base))
            for kind, (module, base) in enumerate(zip(modules, bases, strict=True))
        ]
        self.expected = Expected(self.weights)
        self.roots: dict[str, Any] = {
            name: modules[0] if name == "alone" else Pipeline(**{part: modules[i] for part, i in parts.items()})
            for name, parts in ROOTS.items()
        }
        self.copies: list[tuple[str, int, dict[str, Tensor], dict[str, Tensor]]] = []  # what, of which, it, a clone
        self.tapes: list[tuple[int, Tensor, Tensor, Tensor]] = []  # network, input, output, gradient that is right

    def owned(self, network: int) -> bool:
        return self.expected.top(network) is not None

    def forget(self, network: int) -> None:
        """Drop what shares memory with a network that is about to be written to by its user."""
        self.copies = [kept for kept in self.copies if kept[1] != network or kept[0] != "state_dict"]
        self.tapes = [tape for tape in self.tapes if tape[0] != network]

    def check(self) -> None:
        """Raise Wrong where anything is not as it should be."""
        self.expected.check()
        for what, network, kept, snapshot in self.copies:
            changed = [name for name in kept if not torch.equal(kept[name], snapshot[name])]
            if changed:
                raise Wrong(f"a {what} taken earlier of network {network} has changed: {', '.join(changed)}")


Operation = Callable[[Stage, Random], "bool | None"]


def _doses(random: Random) -> tuple[Dose, ...]:
    files = random.sample(list(FILES), random.choice((1, 1, 1, 2)))
    return tuple(Dose(file, random.choice((1.0, 0.5, -0.5)), random.random() < 0.25) for file in files)


def _tags(doses: tuple[Dose, ...]) -> str:
    return "x " + "".join(f"<lora:{d.file}:{f'{d.strength}@0,0@1' if d.fades else d.strength}>" for d in doses)


def _apply(stage: Stage, root: str, doses: tuple[Dose, ...], *, block: bool, **wishes: Any) -> Owner:
    catalog, _ = folder()
    applied = lora_runtime.apply(stage.roots[root], _tags(doses), loras=catalog, **wishes)
    if block:
        applied.__enter__()
    refused = set()
    for line in applied.report.loras:
        for place, name in folder()[1][line.name]:
            ending = ".diff_b" if name.endswith(".bias") else "."
            stem = f"{place}.{name.rpartition('.')[0]}{ending}"
            reasons = [why for key, why in line.unused.items() if key.startswith(stem)]
            if reasons and place in ROOTS[root]:
                refused.add((line.name, place, name))
                network = ROOTS[root][place]
                if not stage.weights[network].hooked and not _fused(stage, network):
                    raise Wrong(f"{line.name} on {root} was refused at {name} of a plain model: {reasons[0]}")
    # Also of an apply that only asks for what a former one keeps so.
    in_place = any(kept.step in ("host", "inplace") for kept in applied.report.memory)
    return Owner(root, ROOTS[root], doses, applied, block, 0.0, in_place, frozenset(refused))


def _fused(stage: Stage, network: int) -> bool:
    attention = getattr(stage.weights[network].module, "attn", None)
    return attention is not None and attention.fused_projections


def _blocks(stage: Stage, root: str) -> bool:
    return any(owner.block and owner.root == root for owner in stage.expected.owners)


def _came(stage: Stage, owner: Owner) -> None:
    stage.expected.owners.append(owner)
    for network in owner.components.values():
        stage.weights[network].written = False


def apply(stage: Stage, random: Random) -> bool | None:
    """`apply` that stays until the next one, or its `restore`; inside a block of the same model it has no clear end."""
    root, doses = random.choice(list(ROOTS)), _doses(random)
    if _blocks(stage, root):
        return False
    host = random.random() < 0.2
    if host:  # the storage of W₀ is written, which a state dict shares
        for network in ROOTS[root].values():
            stage.forget(network)
    owner = _apply(stage, root, doses, block=False, originals="host" if host else "auto")
    # Of another root it replaces what it covers all of.
    mine = set(ROOTS[root].values())
    stage.expected.owners = [
        old for old in stage.expected.owners if old.block or not mine.issuperset(old.components.values())
    ]
    _came(stage, owner)
    return None


def enter(stage: Stage, random: Random) -> bool | None:
    """Enter a block, over whatever there is."""
    root, doses = random.choice(list(ROOTS)), _doses(random)
    if any(owner.root == root and not owner.block for owner in stage.expected.owners):
        return False
    if len(stage.expected.owners) > 3:
        return False
    _came(stage, _apply(stage, root, doses, block=True))
    return None


def leave(stage: Stage, random: Random) -> bool | None:
    """Leave the innermost block."""
    block = next((owner for owner in reversed(stage.expected.owners) if owner.block), None)
    if block is None:
        return False
    stage.expected.owners.remove(block)
    block.applied.__exit__(None, None, None)
    return None


def restore(stage: Stage, random: Random) -> bool | None:
    """`Applied.restore()` of any owner, wherever in the stack it lies."""
    free = [owner for owner in stage.expected.owners if not owner.block]
    if not free:
        return False
    owner = random.choice(free)
    stage.expected.owners.remove(owner)
    owner.applied.restore()
    return None


def restore_all(stage: Stage, random: Random) -> bool | None:
    """`lora_runtime.restore(model)`, where nobody else has a part of it."""
    root = random.choice(list(ROOTS))
    mine = set(ROOTS[root].values())
    if any(owner.root != root and mine & set(owner.components.values()) for owner in stage.expected.owners):
        return False
    if _blocks(stage, root):
        return False
    stage.expected.owners = [owner for owner in stage.expected.owners if owner.root != root]
    lora_runtime.restore(stage.roots[root])
    return None


def at(stage: Stage, random: Random) -> bool | None:
    """Say which step it is, of an owner whose components show what it asks for."""
    tops = [stage.expected.top(number) for number in range(len(stage.weights))]
    able = [owner for owner in stage.expected.owners if all(tops[i] is owner for i in owner.components.values())]
    if not able:
        return False
    owner, step = random.choice(able), random.randrange(5)
    owner.applied.at(step, 5)
    owner.moment = step / 4
    return None


def move(stage: Stage, random: Random) -> bool | None:
    """What offloading does to a parameter: new memory with the same values."""
    weights = random.choice(stage.weights)
    if weights.hooked:
        return False
    for parameter in weights.module.parameters():
        parameter.data = parameter.data.clone()
    return None


def cast(stage: Stage, random: Random) -> bool | None:
    """`.to(dtype)`."""
    weights = random.choice(stage.weights)
    if weights.hooked or _fused(stage, weights.kind):
        return False
    dtype = random.choice((torch.bfloat16, torch.float32, torch.float32, torch.float16))
    weights.module.to(dtype)
    weights.cast(dtype)
    return None


def _fresh(weights: Weights, random: Random) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(random.randrange(10**6))
    return {
        name: (torch.randn(bits[0].shape, generator=generator) * 0.4).to(weights.dtype)
        for name, bits in weights.base.items()
    }


def load_state_dict(stage: Stage, random: Random) -> bool | None:
    """Other weights, written in place."""
    weights = random.choice(stage.weights)
    if weights.hooked or _fused(stage, weights.kind):
        return False
    stage.forget(weights.kind)
    values = _fresh(weights, random)
    weights.module.load_state_dict(values, strict=False)
    weights.write(values, stage.owned(weights.kind))
    return None


def write_data(stage: Stage, random: Random) -> bool | None:
    """Other weights, written as EMAModel.copy_to does: through `.data`, which no counter sees."""
    weights = random.choice(stage.weights)
    if weights.hooked or _fused(stage, weights.kind):
        return False
    stage.forget(weights.kind)
    values = _fresh(weights, random)
    for name, parameter in weights.module.named_parameters():
        if name in values:
            parameter.data.copy_(values[name])
    weights.write(values, stage.owned(weights.kind))
    return None


def state_dict(stage: Stage, random: Random) -> bool | None:
    """Take a state dict, which must stay what it is."""
    weights = random.choice(stage.weights)
    if weights.hooked or any(o.in_place and weights.kind in o.components.values() for o in stage.expected.owners):
        return False
    taken = dict(weights.module.state_dict())
    stage.copies.append(("state_dict", weights.kind, taken, {name: value.clone() for name, value in taken.items()}))
    return None


def deepcopy(stage: Stage, random: Random) -> bool | None:
    """Take a copy, or save the network and load it: a plain network with the weights shown, or W₀, for good."""
    weights = random.choice(stage.weights)
    if weights.hooked or _fused(stage, weights.kind):
        return False
    if random.random() < 0.5:
        twin = copy.deepcopy(weights.module)
    else:
        file = io.BytesIO()
        torch.save(weights.module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    values = {name: parameter.detach() for name, parameter in twin.named_parameters()}
    plain = output(weights.kind, {name: values[name].double() for name in weights.base})
    if not torch.allclose(twin(probe(weights.dtype)).double(), plain, atol=0.05, rtol=0.05):
        raise Wrong(f"a copy of network {weights.kind} computes something else than its own parameters say")
    stage.copies.append(("copy", weights.kind, values, {name: value.clone() for name, value in values.items()}))
    return None


def record(stage: Stage, random: Random) -> bool | None:
    """Run forward with a tape."""
    weights = random.choice(stage.weights)
    if weights.hooked or weights.written or weights.rounding != ROUNDING[torch.float32]:
        return False
    x = probe(torch.float32).requires_grad_()
    y = weights.module(x).square().sum()
    wanted = probe(torch.float64).requires_grad_()
    values = stage.expected.shown(weights.kind)
    torch.func.functional_call(reference(weights.kind), values, (wanted,)).square().sum().backward()
    stage.tapes.append((weights.kind, x, y, wanted.grad))
    return None


def backward(stage: Stage, random: Random) -> bool | None:
    """Run backward over whatever has happened since: the gradient of what ran, or autograd's own error."""
    if not stage.tapes:
        return False
    network, x, y, wanted = stage.tapes.pop(random.randrange(len(stage.tapes)))
    try:
        y.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return None
        raise
    if not torch.allclose(x.grad.double(), wanted, atol=1e-3, rtol=1e-3):
        raise Wrong(f"backward of network {network} gives the gradient of other weights than those that ran")
    return None


def offload(stage: Stage, random: Random) -> bool | None:
    """accelerate's hooks, on and off: the weights are kept elsewhere between calls."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    weights = random.choice(stage.weights)
    if stage.owned(weights.kind) or _fused(stage, weights.kind):
        return False
    if weights.hooked:
        remove_hook_from_submodules(weights.module)
        for module in weights.module.modules():  # accelerate leaves the forward of the instance
            module.__dict__.pop("forward", None)
    else:
        stage.forget(weights.kind)
        cpu_offload(weights.module, torch.device("cpu"))
    weights.hooked = not weights.hooked
    return None


def fuse(stage: Stage, random: Random) -> bool | None:
    """`fuse_qkv_projections` and back, of a network that nobody owns."""
    weights = random.choice(stage.weights[:2])
    if stage.owned(weights.kind) or weights.hooked or weights.dtype != torch.float32:
        return False
    if _fused(stage, weights.kind):
        weights.module.unfuse()
        weights.module.attn.fused_projections = False
        del weights.module.attn.to_qkv
    else:
        weights.module.fuse()
    return None


def threads(stage: Stage, random: Random) -> bool | None:
    """Several threads, each with a block of its own on models that meet: each sees its own, and the others wait."""
    if any(owner.block for owner in stage.expected.owners) or any(w.written for w in stage.weights):
        return False
    jobs = [(random.choice(list(ROOTS)), _doses(random)) for _ in range(3)]
    wrong: list[BaseException] = []

    def work(root: str, doses: tuple[Dose, ...]) -> None:
        try:
            _visit(stage, root, doses)
        except BaseException as error:
            wrong.append(error)

    _drop_free(stage, {root for root, _ in jobs})
    workers = [threading.Thread(target=work, args=job, daemon=True) for job in jobs]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # seconds: threads meet in the middle of everything, not once in a while
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
    finally:
        sys.setswitchinterval(usual)
    if any(worker.is_alive() for worker in workers):
        raise Wrong("threads wait for each other for ever")
    if wrong:
        raise wrong[0]
    return None


def tasks(stage: Stage, random: Random) -> bool | None:
    """Several tasks of one event loop, each with an `async with` block that it leaves the loop in."""
    if any(owner.block for owner in stage.expected.owners) or any(w.written for w in stage.weights):
        return False
    if not hasattr(Applied, "__aenter__"):
        return False
    jobs = [(random.choice(list(ROOTS)), _doses(random)) for _ in range(3)]
    _drop_free(stage, {root for root, _ in jobs})
    catalog, _ = folder()

    async def work(root: str, doses: tuple[Dose, ...]) -> None:
        async with lora_runtime.apply(stage.roots[root], _tags(doses), loras=catalog):
            await asyncio.sleep(0)
            _look(stage, root, doses)

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(work(*job) for job in jobs)), PATIENCE)

    asyncio.run(main())
    return None


def _drop_free(stage: Stage, roots: set[str]) -> None:
    """Take back what a visit would replace."""
    for owner in [owner for owner in stage.expected.owners if owner.root in roots]:
        stage.expected.owners.remove(owner)
        owner.applied.restore()


def _visit(stage: Stage, root: str, doses: tuple[Dose, ...]) -> None:
    catalog, _ = folder()
    with lora_runtime.apply(stage.roots[root], _tags(doses), loras=catalog):
        _look(stage, root, doses)


def _look(stage: Stage, root: str, doses: tuple[Dose, ...]) -> None:
    """Check the networks of one root by themselves, as if these doses were on top."""
    mine = [index for index in ROOTS[root].values() if not stage.weights[index].hooked and not _fused(stage, index)]
    owner = Owner(root, ROOTS[root], doses, None, True)
    Expected(stage.weights, [owner]).check(only=mine)


OPERATIONS: dict[str, tuple[Operation, int]] = {  # and how often, by weight
    "apply": (apply, 6),
    "enter": (enter, 6),
    "leave": (leave, 5),
    "restore": (restore, 4),
    "restore_all": (restore_all, 1),
    "at": (at, 2),
    "move": (move, 3),
    "cast": (cast, 2),
    "load_state_dict": (load_state_dict, 2),
    "write_data": (write_data, 1),
    "state_dict": (state_dict, 2),
    "deepcopy": (deepcopy, 1),
    "record": (record, 2),
    "backward": (backward, 2),
    "offload": (offload, 1),
    "fuse": (fuse, 1),
    "threads": (threads, 1),
    "tasks": (tasks, 1),
}
