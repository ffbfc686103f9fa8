"""The lines of `jaxnet layers`."""

from collections.abc import Iterator

from jaxnet.registry import Kind, did_you_mean, makers


def listed(*names: str) -> Iterator[str]:
    """Each maker's call with its defaults, its first line, its example inputs.

    Raises `LookupError` for an unknown name.
    """
    kinds: tuple[Kind, ...] = ("layer", "model", "loss", "feedback")
    known = [(name, entry) for kind in kinds for name, entry in makers(kind).items() if entry.configs or entry.examples]
    for name in names:
        if name not in dict(known):
            raise LookupError(f"no layer, model, loss or feedback {name!r}: {did_you_mean(name, dict(known))}")
    for kind in kinds:
        chosen = [entry for name, entry in known if entry.kind == kind and (not names or name in names)]
        yield from [f"{kind.upper()}", ""] if chosen else []
        for entry in chosen:
            yield entry.call
            yield f"    {entry.about}"
            yield from (f"    {call}: {', '.join(inputs)}" for call, inputs in entry.examples.items())
            yield ""
