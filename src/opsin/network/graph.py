"""The autograd graph of a run."""

from collections.abc import Iterable, Iterator

from torch.autograd.graph import Node


def nodes(starts: Iterable[Node | None], without: Node | None = None) -> Iterator[Node]:
    """Every node that is reachable from `starts` without passing `without`, once each."""
    todo = [node for node in starts if node is not None and node is not without]
    seen = {*todo, without}  # keeps the nodes alive, so that their ids stay unique
    while todo:
        node = todo.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                todo.append(below)
