"""What torch does again for every graph and every pass of a conversion, done once.

    operators     listed from the dispatcher for each of 35 namespaces of a decomposition
    kernels       22 for each of 500 operators, put in one by one at every decomposition: 86 ms
    annotations   of a function inside `py_impl`, for each operator of a decomposition
    history       of every node, copied at every pass, however long it has become
    traces        of Python's stack, for each node, which no target keeps

Source: torch 2.13, `_collect_all_valid_cia_ops` and `_materialize_cpp_cia_ops`
(torch/_export/utils.py), `_override_composite_implicit_decomp` (torch/export/exported_program.py),
`OperatorBase.py_impl` (torch/_ops.py), `NodeSource` (torch/fx/traceback.py), torch/fx/config.py.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from torch import _ops
from torch._C import DispatchKey
from torch._export import utils
from torch._higher_order_ops.utils import autograd_not_implemented
from torch._subclasses import fake_impls
from torch.export import decomp_utils, exported_program
from torch.fx import config
from torch.fx.traceback import NodeSource

from edgevlm.libraries import replaced

# Of dictionaries whose keys are hashed once.
_AUTOGRAD = dict.fromkeys(exported_program._AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE)
_BACKENDS = dict.fromkeys(exported_program._BACKEND_KEYS_TO_OVERRIDE)


@contextmanager
def without_repeats() -> Iterator[None]:
    """Inside, torch does these once; nobody adds operators meanwhile."""
    if exported_program._override_composite_implicit_decomp is _overridden:  # inside already
        yield
        return
    operators = cache(utils._collect_all_valid_cia_ops)
    with (
        replaced(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops)),
        replaced(exported_program, "_collect_all_valid_cia_ops", operators),
        replaced(decomp_utils, "_collect_all_valid_cia_ops", operators),
        replaced(exported_program, "_override_composite_implicit_decomp", _overridden),
        replaced(_ops, "Callable", typing.Callable),  # remembers what it has computed
        replaced(NodeSource, "__deepcopy__", lambda source, _: source),  # it never changes
        replaced(config, "do_not_emit_stack_traces", True),
    ):
        yield


@contextmanager
def _overridden(decompositions: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """torch's own, with all kernels of an operator put in at once."""
    saved = {operator: operator.py_kernels for operator in decompositions}
    try:
        for operator, decomposition in decompositions.items():
            original = utils._get_decomp_for_cia(operator)
            refused = autograd_not_implemented(operator, deferred_error=True)
            operator.py_kernels = {
                **dict.fromkeys(_AUTOGRAD, refused),
                **dict.fromkeys(_BACKENDS, original),
                **operator.py_kernels,
                DispatchKey.CompositeImplicitAutograd: decomposition,
            }
            operator._dispatch_cache.clear()
            if not fake_impls._is_op_registered_to_fake_rule(operator):
                fake_impls.register_op_impl(operator)(partial(_as_before, original=original))
        yield
    finally:
        for operator, kernels in saved.items():
            operator.py_kernels = kernels
            operator._dispatch_cache.clear()
            fake_impls._deregister_op_impl(operator)


def _as_before(mode: Any, operator: Any, *args: Any, original: Any, **kwargs: Any) -> Any:
    """An operator on fake tensors, whatever becomes of it in the graph."""
    with mode:
        return original(*args, **kwargs)
