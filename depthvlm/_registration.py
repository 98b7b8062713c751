"""Registration of DepthVLM's classes with transformers' Auto classes, as late as possible.

After `import depthvlm`, `AutoModel.from_pretrained(<a DepthVLM checkpoint>)` works without `trust_remote_code`.
Registering needs torch and transformers' modelling code, seconds of imports that `depthvlm --help` has no use for;
so it waits until the program imports the Auto classes itself, noticed by a finder at the front of `sys.meta_path`.
"""

import functools
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = ("transformers.", "depthvlm.modeling_depthvlm.", "depthvlm.processing.")  # what registration needs
_AUTO_MODULE = "transformers.models.auto.configuration_auto"  # every other Auto module imports this one


class _AutoClassesFinder(MetaPathFinder):
    """Registers DepthVLM once transformers' Auto classes have been imported.

    Only the outermost import of these packages is followed. At its end none of their modules is half-initialised, so
    that DepthVLM's own imports cannot run into a circle (transformers imports its Auto classes amid others).
    """

    def __init__(self) -> None:
        self.importing = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as the other finders do, and have its loader call back when it is done."""
        if self.importing or not f"{fullname}.".startswith(_WATCHED):
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # on the instance, and only for this one import: the loader keeps its type and all it can do
            spec.loader.exec_module = functools.partial(self._exec_module, spec.loader)  # type: ignore[method-assign]
        return spec

    def _exec_module(self, loader: Loader, module: ModuleType) -> None:
        del loader.exec_module
        self.importing = True
        try:
            loader.exec_module(module)
        finally:
            self.importing = False
        if _AUTO_MODULE in sys.modules:
            try:
                register()
            except ImportError as error:  # the program may only want transformers: do not break its import
                warnings.warn(f"DepthVLM could not register its Auto classes: {error}", RuntimeWarning, stacklevel=2)


_finder = _AutoClassesFinder()


def register() -> None:
    """Register the model, configuration and processor classes with transformers' Auto classes, now. Idempotent."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)  # first: what is imported below must not come back here
    _register_once()


@functools.cache
def _register_once() -> None:
    from .modeling_depthvlm import DepthVLMConfig
    from .modeling_depthvlm import register_auto_classes as register_models
    from .processing import register_auto_classes as register_processors

    register_models()
    register_processors(DepthVLMConfig)


def register_when_needed() -> None:
    """Register now if transformers' Auto classes are imported already, else as soon as they are."""
    if _AUTO_MODULE in sys.modules:
        register()
    elif _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
