"""PeVL: a pose-enhanced vision-language model that tells fine-grained actions apart from video, pose and text.

Begin (offline, on a CPU; the model `simdive48` comes with the package and knows 48 simulated dives):

    import pevl
    pevl.demo("runs/demo")                                # simulate, train, evaluate, report: a few minutes
    print(pevl.predict("clip.mp4"))                       # what does it show? the classes that the model was trained on
    print(pevl.predict("clip.mp4", ["a squat", "a lunge"], model="run"))  # your texts, your training run or .safetensors

Then
    predict             rank label texts for one video; its joints are read from the file beside it, or found
    predict_folder      the same for a folder of videos; one bad file does not stop the others
    load_predictor      a model that stays in memory, for many calls
    predict_windows     what happens when, in a long video
    write_overlay       the video again, with skeleton, label and phrase drawn in
    extract_features    what the model makes of videos, as one .safetensors file, for a model of your own
    create_model        a PeVL by name: see list_models(), and PeVLConfig for what can be changed
    load_model          a trained PeVL from its .safetensors file; PeVL is a torch module

    Training, on your own clips in a folder per class or on a benchmark, begins on the command line (pevl train --help),
    or with `from pevl.train.learner import train` and `from pevl.train.evaluate import evaluate`.
    help(pevl.predict) and so on explain every argument. The rest is in pevl.data, pevl.model, pevl.loss, pevl.train and
    pevl.use: a module for each chapter of the book.

Command line    pevl --help
Book            https://pevl.github.io/pevl (the notebooks in nbs/; each is one module of this package)
Weights         weights="simdive48" ships with the package; "clip" fetches OpenAI's CLIP for pevl_vit_b16 and pevl_vit_l14
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# What stands at the top of the package, and the module that holds it. Loaded at first use, so `import pevl` and `pevl --help` stay quick.
_WHERE = {
    "demo": "pevl.use.demo",
    "predict": "pevl.use.predict",
    "predict_folder": "pevl.use.predict",
    "load_predictor": "pevl.use.predict",
    "predict_windows": "pevl.use.windows",
    "write_overlay": "pevl.use.overlay",
    "extract_features": "pevl.use.features",
    "create_model": "pevl.model.pevl",
    "list_models": "pevl.model.pevl",
    "load_model": "pevl.model.pevl",
    "PeVL": "pevl.model.pevl",
    "PeVLConfig": "pevl.model.pevl",
}
__all__ = [*_WHERE]

if TYPE_CHECKING:  # the same for editors, which read and do not run
    from .model.pevl import PeVL, PeVLConfig, create_model, list_models, load_model
    from .use.demo import demo
    from .use.features import extract_features
    from .use.overlay import write_overlay
    from .use.predict import load_predictor, predict, predict_folder
    from .use.windows import predict_windows


def __getattr__(name):
    from importlib import import_module

    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name.startswith("__"):
        raise AttributeError(f"module 'pevl' has no attribute {name!r}")
    from .data.files import did_you_mean

    raise AttributeError(f"module 'pevl' has no attribute {name!r}{did_you_mean(name, _WHERE)}")


def __dir__():
    return sorted([*globals(), *_WHERE])
