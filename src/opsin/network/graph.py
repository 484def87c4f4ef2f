"""The autograd graph of a run."""

from collections.abc import Iterable, Iterator

from torch.autograd.graph import Node


def nodes(starts: Iterable[Node | None], without: Node | None = None) -> Iterator[Node]:
    """Every node of the graph below `starts` that is reached `without` one, once."""
    todo = [node for node in starts if node is not None and node is not without]
    seen = {*todo, without}  # holds the nodes, so that their Python identity lasts
    while todo:
        node = todo.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                todo.append(below)
