"""Small networks that come inside PyPI packages, so that nothing is downloaded. The only file that knows onnxruntime.

Of such a package only the file of the network is used; none of its Python code is run, which often needs much more.

Invariant: a network gives the same numbers whatever else runs: it has one thread, of its own.

Example:
    network = packaged_network("speechmos", "dnsmos_models/sig_bak_ovr.onnx", what="DNSMOS")
    network.run(None, {"input_1": waves})
"""

import importlib.util
from pathlib import Path
from typing import Any

from slmkit.errors import UserError

INSTALL = "pip install 'slmkit[measure]'"


def packaged_path(package: str, file: str, *, what: str) -> Path:
    """Where `file` of an installed package lies, which is called as it is imported; `what` needs it.

    Raises UserError when the package or onnxruntime is not installed, or the package has no such file.
    """
    found = {name: importlib.util.find_spec(name) for name in (package, "onnxruntime")}
    for name, spec in found.items():
        if spec is None:
            raise UserError(f"{what} needs the package {name.replace('_', '-')}", next_step=INSTALL)
    places = getattr(found[package], "submodule_search_locations", None)
    path = Path(places[0] if places else "", file)
    if not path.is_file():
        raise UserError(
            f"{what} needs another version of the package {package.replace('_', '-')}",
            got="it lacks the network",
            expected=path,
            next_step=INSTALL,
        )
    return path


def packaged_network(package: str, file: str, *, what: str) -> Any:
    """The network as an onnxruntime.InferenceSession on the CPU. Raises UserError as `packaged_path`."""
    path = packaged_path(package, file, what=what)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{what} needs the package onnxruntime", got=error, next_step=INSTALL) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
