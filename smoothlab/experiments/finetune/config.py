"""What `smoothlab finetune` and `smoothlab smoothness` are asked: one set of options, each with one meaning.

A new training method is one entry of METHODS; a new optimizer of the exact part one entry of
`smoothlab.experiments.finetune.setup.OPTIMIZERS` and its name in EXACT.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from smoothlab.experiments.options import DistributionName
from smoothlab.llm.peft_methods import PeftName
from smoothlab.llm.tasks import TaskName
from smoothlab.llm.tasks.jsonlines import TEMPLATE


class Recipe(NamedTuple):
    """How a method trains: gradients of the base model ("zeroth", "exact", "" is frozen), a PEFT module, and a line."""

    base: str
    module: bool
    description: str


METHODS: dict[str, Recipe] = {
    "hybrid": Recipe(
        "zeroth", True, "the base model by zeroth-order and the {} module by first-order gradients, at the same point"
    ),
    "zo": Recipe("zeroth", False, "the base model alone, by zeroth-order gradients"),
    "fo-peft": Recipe("", True, "the {} module alone, by first-order gradients"),
    "fo-full": Recipe("exact", False, "the base model alone, by first-order gradients"),
    "fo-joint": Recipe("exact", True, "the base model and the {} module, both by first-order gradients"),
}
EXACT = ("sgd", "adam")
LOG = "log:"
"""Before a checkpoint folder whose files hold the base model as a seed log."""
if TYPE_CHECKING:
    Method = str
    Exact = str
else:  # The command line's choices are the tables' entries, which a type checker cannot compute.
    Method = Literal[tuple(METHODS)]
    Exact = Literal[EXACT]


class Rates(NamedTuple):
    """Learning rates of x and y, and the step mu of the zeroth-order differences."""

    eta_x: float
    eta_y: float
    mu: float


@dataclass(frozen=True)
class Training:
    """A model, its data, how it is trained, and where curvature is measured on the way.

    Attributes:
        model: hub name, local directory, GGUF file (de-quantized to --dtype), "micro" (in the package), or
            "random:opt-125m" (that shape, random weights).
        head: how answers are scored. lm: each candidate word with the language model's head. classifier: with a
            classification head, the checkpoint's or a new one, on the sentence without a prompt; it is trained at
            eta_y with the PEFT module, or without one as part of the base model. auto: classifier where config.json
            says ...ForSequenceClassification or names a type that is no causal language model (BERT, RoBERTa), else lm.
        data: name of a task, or a JSON Lines file (.gz too) with the fields sentence and label, or prompt, candidates
            and label.
        data_dir: folder with the task's files; without it a task is read from the hub.
        template: prompt of the sentences of a JSON Lines file, with {sentence} in it.
        verbalizers: word of each class of such a file, in the order of the labels; by default terrible and great for
            two classes. A classifier needs none.
        train: items to train on, at most.
        method: what is trained, by which gradients. hybrid: base model by zeroth-order, PEFT module by first-order
            gradients, both at the same point; zo: base model alone, zeroth-order; fo-peft: PEFT module alone,
            first-order; fo-full: base model alone, first-order; fo-joint: both, first-order.
        peft: PEFT method to add to the model, or none; auto adds lora where --method trains a PEFT module, else none.
        rank: rank of the PEFT module where its method has one, 8 unless given; the alpha of LoRA is twice the rank.
        optimizer: update by exact gradients: sgd, as in Algorithm 1, or adam. Zeroth-order updates are always sgd.
        eta_x: learning rate of the base model.
        eta_y: learning rate of the PEFT module, and of a classifier's head beside it.
        eta: learning rates of single blocks, written NAME=RATE, where NAME is a block that --blocks defines; blocks
            that are not named keep eta_x or eta_y.
        mu: perturbation mu. A zeroth-order gradient evaluates the loss at x + mu z, where the entries of z have
            variance 1 in every distribution, so that ||mu z|| is about mu sqrt(d).
        q: directions averaged in a zeroth-order gradient.
        sides: sides of a difference. 1: f(x + mu z) - f(x), which shares f(x) with the first-order part; 2:
            f(x + mu z) - f(x - mu z).
        distribution: distribution of the directions z.
        steps: training steps, at most.
        batch: items in a minibatch, of all processes together.
        schedule: schedule of all learning rates over the steps.
        blocks: grouping of the parameters into blocks, for --measure and --eta: part (base, peft, head), layer, module
            (attention, mlp, embedding, norm), or patterns "name=regex,name=regex".
        measure: names of the blocks, as --blocks groups them, whose curvature is measured along the run, or all.
            smoothness measures all of them unless told otherwise, and finetune none.
        cross: pairs of measured blocks a:b whose cross block H_ab is measured too; auto is base:peft where both are.
        points: number of measuring points from step 0 to the last step, both included.
        spacing: spacing of the measuring points over the steps.
        minibatch: minibatch that curvature is measured on: that of the step, as in the paper, or a fixed one.
        over: items of the training set whose mean loss is measured beside that of one minibatch: Frobenius norm and
            trace of its Hessian from redrawn minibatches of --batch items, with the share of the error that comes from
            drawing them (rows of protocol "dataset"); 0 leaves it out.
        protocol: measuring protocol. estimated: products with 95 % intervals; paper: Appendix D.4 as printed; both: one
            after the other at the same points.
        product: Hessian-vector products of the estimated protocol: exact, or finite differences (central, forward).
        precision: half-width of the 95 % interval of a Frobenius norm, as a fraction of the norm, at which probing
            stops.
        probes: unit vectors a block in the paper's protocol.
        path: measure the path-based smoothness ||g(k+1) - g(k)|| / ||w(k+1) - w(k)|| at the points, too.
        dtype: number format of the weights.
        device: device, cpu or cuda.
        checkpoint: folder for checkpoints, from which a stopped run continues. Written log:FOLDER, it holds the base
            model as a seed log, the seeds and coefficients of its zeroth-order steps (under 1 MB for 20,000 steps with
            q = 1), which rebuild it to the bit.
        seed: seed of splits, minibatches, PEFT module, directions and probes.
    """

    model: str = "micro"
    head: Literal["auto", "lm", "classifier"] = "auto"
    data: TaskName = "builtin"
    data_dir: Path | None = None
    template: str = TEMPLATE
    verbalizers: tuple[str, ...] = ()
    train: int = 1000
    method: Method = "hybrid"
    peft: PeftName = "auto"
    rank: int | None = None
    optimizer: Exact = "adam"
    eta_x: float = 1e-4
    eta_y: float = 5e-3
    eta: tuple[str, ...] = ()
    mu: float = 1e-3
    q: int = 1
    sides: Literal[1, 2] = 2
    distribution: DistributionName = "gaussian"
    steps: int = 200
    batch: int = 16
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    blocks: str = "part"
    measure: tuple[str, ...] = ()
    cross: tuple[str, ...] = ("auto",)
    points: int = 10
    spacing: Literal["linear", "log"] = "linear"
    minibatch: Literal["step", "fixed"] = "step"
    over: int = 0
    protocol: Literal["estimated", "paper", "both"] = "estimated"
    product: Literal["exact", "central", "forward"] = "exact"
    precision: float = 0.05
    probes: int = 100
    path: bool = True
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    checkpoint: Path | None = None
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """How the method trains."""
        return METHODS[self.method]

    @property
    def module(self) -> str:
        """The PEFT method, or none."""
        if self.peft != "auto":
            return self.peft
        if self.recipe.module:
            return "lora"
        return "none"

    @property
    def rates(self) -> Rates:
        """Learning rates and mu as configured."""
        return Rates(self.eta_x, self.eta_y, self.mu)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of training, dev and test items, at most."""
        # A run without selection scores neither dev nor test items, of which every data set gives at least one.
        return self.train, 1, 1

    @property
    def parts_of_batch(self) -> int:
        """Parts that a minibatch is computed in."""
        # A single process is fastest with one part; more of them serve to compare numbers of processes.
        return 1

    @property
    def folder(self) -> Path | None:
        """Folder of the checkpoints."""
        if self.checkpoint is None:
            return None
        return Path(str(self.checkpoint).removeprefix(LOG))

    @property
    def logged(self) -> bool:
        """Whether checkpoints hold the base model as a seed log."""
        return str(self.checkpoint).startswith(LOG)

    def settings(self, *left_out: str) -> str:
        """All options but those named, and the model's GGUF file, as "name=value, name=value"."""
        from smoothlab.llm.models import file_identity

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        file = file_identity(self.model)
        if file is not None:
            # A checkpoint is of these very weights: a file of the same name with others is another run.
            values["model_file"] = f"{file['name']} of {file['bytes']} bytes with SHA-256 {file['sha256'][:16]}"
        return ", ".join(f"{name}={value}" for name, value in values.items())

    @classmethod
    def upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of a record file in the options of today; what smoothlab 0.1 lacked is at its default.

        Version 0.1 called --optimizer --rule, gave `smoothness` --lr and --lr-block, and had LoRA's rank 16 under its
        classifiers.
        """
        config = dict(config)
        for old, new in (("rule", "optimizer"), ("law", "distribution")):
            if old in config:
                config[new] = config.pop(old)
        if config.get("protocol") == "careful":
            config["protocol"] = "estimated"
        if "lr" in config:
            rates: dict[str, Any] = {"base": config["lr"], "peft": config.pop("lr")}
            for text in config.pop("lr_block"):
                name, _, rate = text.partition("=")
                rates[name] = float(rate)
            config["eta_x"], config["eta_y"] = rates.pop("base"), rates.pop("peft")
            config["eta"] = [f"{name}={rate:g}" for name, rate in rates.items()]
            # All blocks had exact gradients then, and --schedule was that of the points, not of the rates.
            config["method"] = "fo-joint"
            if config["peft"] == "none":
                config["method"] = "fo-full"
            config["spacing"] = config.pop("schedule")
            config["checkpoint"] = config.pop("keep_weights")
            config["measure"] = config["measure"] or ["all"]
            config["rank"] = 16
        # Options that are gone are dropped: records are compared by the options of today.
        return {f.name: config.get(f.name, f.default) for f in fields(cls)}


@dataclass(frozen=True)
class FinetuneOptions(Training):
    """Options of selection on dev, and of what is kept.

    Attributes:
        dev: items to select by, at most.
        test: items to test on, at most.
        parts: number of equal parts in which a CPU computes each minibatch, one after the other. Runs under torchrun
            whose number of processes divides it give identical records; 1 is fastest for a single process.
        eval_every: steps between evaluations on dev.
        patience: evaluations without a better one (more right answers on dev, or as many at a lower loss) after which
            training stops; 0: never.
        search: grid to search, each axis written name=a,b,... with the name eta_x, eta_y or mu, whose option it
            replaces. Every combination is trained for at most --steps steps, and the best on dev alone is tested.
        save: folder for the best weights: adapter/ for peft (a classifier's head too; with the base model's weights
            where these were trained), model/ for transformers where the base model was trained.
        tensorboard: folder for TensorBoard's curves.
    """

    dev: int = 100
    test: int = 1000
    parts: int = 4
    eval_every: int = 25
    patience: int = 10
    search: tuple[str, ...] = ()
    save: Path | None = None
    tensorboard: Path | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss in a step."""
        count = 0
        if self.recipe.base == "zeroth":
            count = self.sides * self.q
        # A one-sided estimate shares f(x, y) with the exact gradient; two-sided ones alone never evaluate it.
        if self.method != "zo" or self.sides == 1:
            count += 1
        return count

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of training, dev and test items, at most."""
        return self.train, self.dev, self.test

    @property
    def parts_of_batch(self) -> int:
        """Parts that a minibatch is computed in."""
        return self.parts
