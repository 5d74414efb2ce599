"""PeVL: a pose-enhanced vision-language model for fine-grained human action recognition."""

__version__ = "0.1.0"

# What stands at the top of the package, and the module that holds it. Loaded at first use, so `import pevl` and `pevl --help` stay quick.
_WHERE = {
    "create_model": "pevl.model.pevl",
    "list_models": "pevl.model.pevl",
    "PeVL": "pevl.model.pevl",
    "PeVLConfig": "pevl.model.pevl",
    "predict": "pevl.use.predict",
}
__all__ = [*_WHERE]


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'pevl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__():
    return sorted([*globals(), *_WHERE])
