"""Packaging. Everything is read from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
lib = cfg["lib_path"]


def needs(group=""):
    "The requirements of `group`: one a line, because a marker contains spaces"
    return [line.strip() for line in cfg[f"{group}requirements"].splitlines() if line.strip()]


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"],
    project_urls={"Book": cfg["doc_host"] + cfg["doc_baseurl"], "Issues": cfg["git_url"] + "/issues"},
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {cfg['audience']}",
        "Programming Language :: Python :: 3",
    ],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[lib, lib + ".*"]),
    include_package_data=False,
    package_data={lib: ["weights/*", "results/*", "labels/*"]},
    install_requires=needs(),
    extras_require={
        "book": needs("book_"),
        "nb": needs("nb_"),
        "dev": needs("nb_") + needs("dev_"),
        "pose": needs("pose_"),
        "app": needs("app_"),
        "onnx": needs("onnx_"),
    },
    entry_points={
        "console_scripts": [f"pevl={lib}.use.cli:main"],
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
)
