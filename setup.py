"""Builds the package from settings.ini, the one place for name, version, requirements and entry points."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key):
    "The non-empty lines of a multi-line value."
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


extras = {key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_namespace_packages(include=["wegformer", "wegformer.*"]),
    package_data={"wegformer.weights": ["*.safetensors"], "wegformer.templates": ["*.html", "*.css"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=lines("requirements"),
    extras_require={**extras, "dev": sum(extras.values(), [])},  # dev holds them all
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["wegformer=wegformer._modidx:d"]},
)
