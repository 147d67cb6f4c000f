"""Which factors of files stay on a device, beside the weights that they are for.

They stay to save the next upload and no more. So there is a budget for each device (the policy's), what nobody asks for
goes first, and whoever runs out of memory may take all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from lora_runtime.adapters import Adapter
from lora_runtime.adapters.base import sum_dtype
from lora_runtime.forecast import shares_host_memory
from lora_runtime.memory_policy import Merging
from lora_runtime.plan import Assignment
from lora_runtime.uploads import Sent, Uploads, bytes_of, packed_bytes
from lora_runtime.weights import Weight

__all__ = ["Factors", "give_up", "without_room"]

Asked = Sequence[tuple[Assignment, Weight]]


def give_up(weights: Iterable[Weight]) -> bool:
    """Let these weights keep no factors on any device; return whether one did."""
    dropped = [weight.drop_uploads() for weight in weights]
    return any(dropped)


def without_room(steps: Mapping[torch.device, Merging]) -> dict[torch.device, Merging]:
    """Return the same steps with no room for factors to stay."""
    return {device: merging._replace(factor_room=0) for device, merging in steps.items()}


class Factors:
    """Sends the factors of files to the devices of the weights that ask for them."""

    def __init__(self) -> None:
        """Start with nothing on any device."""
        self._sent = Sent()

    def prepare(self, changed: Asked, steps: Mapping[torch.device, Merging], among: Iterable[Weight]) -> Uploads:
        """Return the uploads of one apply, after giving up what is too much for it among these weights."""
        return Uploads(self._sent, self._rooms(changed, steps, among))

    def there(self, assignment: Assignment, weight: Weight, uploads: Uploads) -> dict[Adapter, Adapter]:
        """Return the adapters of a weight with their tensors on its device; none where host memory is its memory."""
        device, dtype = weight.parameter.device, sum_dtype(weight.parameter)
        sent: dict[Adapter, Adapter] = {}
        if shares_host_memory(device):
            return sent
        missing: dict[object, list[Adapter]] = {}  # by file
        for term, identity in zip(assignment.terms, assignment.identity, strict=True):
            known = weight.upload_of(term.adapter, device, dtype)
            if known is not None:
                sent[term.adapter] = known.adapter
            else:
                missing.setdefault(identity[0], []).append(term.adapter)  # type: ignore[index]
        for adapters in missing.values():
            made, stay = uploads.send(adapters, device, dtype)
            for adapter, upload in zip(adapters, made, strict=True):
                sent[adapter] = upload.adapter
                if stay:
                    weight.keep(adapter, upload)
        return sent

    def _rooms(
        self, changed: Asked, steps: Mapping[torch.device, Merging], among: Iterable[Weight]
    ) -> dict[torch.device, int | None]:
        """Return the bytes that factors may keep on each device beside those that do; give up what is too much.

        What nobody asks for any more goes first, and only where the room is needed: it may be asked for again.
        """
        devices = {w.parameter.device for _, w in changed if not shares_host_memory(w.parameter.device)}
        rooms = {device: steps[device].factor_room for device in devices}
        limited = {device: room for device, room in rooms.items() if room is not None}
        if not limited:
            return rooms
        wanted = {id(weight): {term.adapter for term in assignment.terms} for assignment, weight in changed}
        here = {id(w): w for w in (*among, *(w for _, w in changed)) if w.uploads}.values()
        needed: Counter[torch.device] = Counter()
        for assignment, weight in changed:
            if weight.parameter.device in limited:
                needed[weight.parameter.device] += self._needed(assignment, weight)

        def held() -> Counter[torch.device]:
            return bytes_of(upload for weight in here for upload in (weight.uploads or {}).values())

        if any(held()[device] + needed[device] > room for device, room in limited.items()):
            for weight in here:
                shown = () if weight.shown is None else (term.adapter for term in weight.shown.terms)
                weight.drop_uploads(wanted.get(id(weight)) or set(shown))
        for device, room in limited.items():
            if held()[device] > room:
                give_up(weight for weight in here if weight.parameter.device == device)
            rooms[device] = max(0, room - held()[device])
        return rooms

    def _needed(self, assignment: Assignment, weight: Weight) -> int:
        """Return the bytes that the adapters of a weight take on its device beside those that are there."""
        device, dtype = weight.parameter.device, sum_dtype(weight.parameter)
        new = [term.adapter for term in assignment.terms if weight.upload_of(term.adapter, device, dtype) is None]
        return packed_bytes(self._sent.missing(new, device, dtype), dtype) if new else 0
