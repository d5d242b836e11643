"""Options of `smoothlab finetune` and `smoothlab smoothness`: one set, each option with one meaning.

A new training method is one entry of METHODS; a new optimizer of the exact part one entry of
`smoothlab.experiments.finetune.setup.OPTIMIZERS` and its name in EXACT.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from smoothlab.experiments.options import DistributionName, Precision, VariantName
from smoothlab.llm.peft_methods import PeftName
from smoothlab.llm.tasks import TaskName
from smoothlab.llm.tasks.jsonlines import TEMPLATE


class Recipe(NamedTuple):
    """A training method: gradients of the base model ("zeroth", "exact", "" is frozen), a PEFT module, and a line."""

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
NARROW = ("bfloat16", "float16")
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
        model: model to load: a hub name, a local directory, a GGUF file (de-quantized to --dtype), "micro" (3.5 million
            parameters, in the package), or "random:opt-125m" (that shape, random weights).
        head: how answers are scored. lm: each candidate word with the language model's head. classifier:
            with a classification head, the checkpoint's or a new one, on the sentence without a prompt; it
            learns at --eta-y where there is a PEFT module, else as part of the base model. auto: classifier
            where config.json says ...ForSequenceClassification or names a type that is no causal language
            model (BERT, RoBERTa), else lm.
        data: name of a task, or a JSON Lines file (.gz too) with the fields sentence and label; prompt, candidates
            and label; prompt and completion (supervised fine-tuning, which scores the completion's tokens alone); or
            text (language modeling).
        data_dir: folder with the files of the named task; without it they are read from the hub. builtin and JSON Lines
            files need none.
        template: prompt made of each sentence of a JSON Lines file, with {sentence} in its place. Named tasks have
            prompts of their own.
        verbalizers: answer words of the classes of a JSON Lines file, in the order of its labels; by default terrible
            and great for two classes. A classifier needs none.
        max_length: length in tokens at which rows, a prompt with its completion or candidate, are cut; by default the
            model's longest input. Prompts of choices lose their beginning, completions and texts their end.
        chat: put each prompt and completion into the tokenizer's chat template, where it has one, as messages of user
            and assistant.
        train: largest number of training items.
        method: what is trained, by which gradients. hybrid: base model by zeroth-order, PEFT module by first-order
            gradients, both at the same point; zo: base model alone, zeroth-order; fo-peft: PEFT module alone,
            first-order; fo-full: base model alone, first-order; fo-joint: both, first-order.
        peft: PEFT method to add to the model, or none; auto adds lora where --method trains a PEFT module, else none.
        rank: rank of the PEFT module, by default 8; refused by methods that have none. LoRA's alpha is twice the rank.
        optimizer: update by exact gradients: sgd (as in Algorithm 1, without momentum) or adam (torch's AdamW without
            weight decay). Zeroth-order updates are always sgd.
        eta_x: learning rate of the base model.
        eta_y: learning rate of the PEFT module, and of a classifier's head beside it.
        eta: learning rates of single blocks that exact gradients train, written NAME=RATE with a NAME that --blocks
            defines, e.g. layer.0=1e-6; other blocks keep --eta-x or --eta-y.
        mu: perturbation mu. A zeroth-order gradient evaluates the loss at x + mu z, where the entries of z have
            variance 1 in every distribution, so that ||mu z|| is about mu sqrt(d).
        q: number of directions z that a zeroth-order gradient averages over.
        sides: sides of a zeroth-order gradient's difference. 1: f(x + mu z) - f(x), whose f(x) the exact gradient
            computes anyway; 2: f(x + mu z) - f(x - mu z).
        distribution: distribution of the directions z. "sparse(0.25)" sets the share of entries that move (by
            default 0.1), "lowrank(2)" the rank (by default 4).
        variant: what is done with zeroth-order estimates before they move the base model. plain: nothing;
            momentum(0.9): a weighted mean of the last ones, rebuilt from their seeds; adaptive(0.999): divided by their
            running root mean square; spread: divided by the standard deviation of their slopes, with --q of at
            least 2; subspace(50): low-rank directions in a subspace that stays for so many steps; muon: the singular
            vectors of each matrix's low-rank estimate, without its singular values.
        perturb: how the loss is evaluated at x + mu z. weights: with a moved copy of the base model; forward: with
            what the move adds to each product with a weight inside the forward pass, so that weights are neither
            written nor copied, for --distribution lowrank.
        parallel: number of the 2q evaluations of a two-sided zeroth-order estimate that one forward pass makes, over
            the minibatch repeated as often, for --perturb forward; pays where a minibatch has few tokens.
        masters: what zeroth-order steps of 16-bit weights, smaller than the spacing of their numbers, add up in.
            float32: copies of the weights (4 more bytes a parameter); factors: the low-rank directions themselves,
            kept beside weights that are never written and may stay a file mapped into memory, at 4 r (m + n) bytes a
            step and matrix [m, n]; for --distribution lowrank, with --perturb forward and --compute float32, which
            need not be given.
        generator: where the numbers of the directions come from: torch, the device's own; portable, the same bits on
            every device, instruction set and torch version, so that a seed log (--checkpoint log:FOLDER) replays
            anywhere.
        steps: number of training steps; finetune may stop earlier, see --patience.
        batch: number of items in a minibatch, of all processes together.
        schedule: factor of all learning rates along the steps: constant 1, or from 1 to 0 on a line (linear) or half a
            cosine.
        blocks: rule that groups the parameters into blocks, for --measure and --eta: part (base, the model's
            own weights; peft, the PEFT module; head, a classification head), layer (embedding, layer.0, ...),
            module (attention, mlp, embedding, norm), or patterns, written "name=regex,name=regex".
        measure: names of the blocks, as --blocks groups them, whose curvature is measured along the run, or all; by
            default all in smoothness, none in finetune.
        cross: pairs of measured blocks, written a:b, whose cross block H_ab of the Hessian is measured too; auto is
            base:peft where both are measured.
        points: number of measuring points, the steps at which curvature is measured: step 0, the end of the run, and
            others between them.
        spacing: spacing of the measuring points over the steps: linear, or log (step 0, then geometric from step 1).
        minibatch: minibatch that curvature is measured on: that of the step, as in the paper, or at all points that of
            step 0 (fixed).
        over: number of training items whose mean loss is measured beside that of one minibatch, at least --batch:
            Frobenius norm and trace of its Hessian from redrawn minibatches of --batch items, with the share of the
            error that comes from drawing them (rows of protocol "dataset"); 0 leaves it out.
        protocol: how norms are measured. estimated: from Hessian-vector products, with 95 % intervals; paper: as
            Appendix D.4 of the paper prints it; both: one after the other at the same points.
        product: Hessian-vector products of --protocol estimated: exact (double backward), or finite differences of
            gradients (central, forward).
        precision: half-width of the 95 % interval of a Frobenius norm, as a fraction of the norm, at which probing
            stops; where the budget of products is spent before, the row is flagged. Written QUANTITY=NUMBER beside it,
            that of another quantity: with trace=0.2, probing goes on until the trace is known to 20 %, or the row says
            how many products that would need.
        block_rows: rule that splits the measured blocks, layer or module: the norm of each part's rows of the Hessian
            and its trace are measured too, from the same products; none leaves them out.
        gauss_newton: also measure the trace of the Gauss-Newton matrix of each measured block, by probes in the space
            of the outputs (candidates' scores, or else the vocabulary's logits), to the precision
            gauss_newton_trace=NUMBER of --precision, or its plain number.
        diagonal: number of products at each point that the norms of the diagonal blocks of --block-rows share, spent
            where the interval is widest; 0 leaves them out.
        probes: number of unit vectors a block in --protocol paper; estimated takes as many as --precision needs.
        path: also measure, at the measuring points, how fast the gradient g of each block changes along the path of its
            weights w: ||g(k+1) - g(k)|| / ||w(k+1) - w(k)||.
        dtype: number format of the weights; curvature takes float32 or float64.
        compute: number format of sums and products; auto: that of the weights; float32, with --dtype bfloat16 or
            float16: each layer widens its weights while it computes, for CPUs that are slow with 16-bit numbers.
        device: device to compute on: cpu, cuda, or one of several, such as cuda:1.
        checkpoint: folder for checkpoints, from which a stopped run continues. finetune with --method hybrid or zo also
            takes log:FOLDER, which holds the base model as a seed log, the seeds and coefficients of its zeroth-order
            steps (under 1 MB for 20,000 steps with q = 1), which rebuild it to the bit.
        seed: seed of the split into training and dev items, minibatches, new heads, PEFT module, directions and probes;
            test items do not depend on it.
    """

    model: str = "micro"
    head: Literal["auto", "lm", "classifier"] = "auto"
    data: TaskName = "builtin"
    data_dir: Path | None = None
    template: str = TEMPLATE
    verbalizers: tuple[str, ...] = ()
    max_length: int | None = None
    chat: bool = True
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
    variant: VariantName = "plain"
    perturb: Literal["weights", "forward"] = "weights"
    parallel: int = 1
    masters: Literal["float32", "factors"] = "float32"
    generator: Literal["torch", "portable"] = "torch"
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
    precision: Precision = 0.05
    block_rows: Literal["none", "layer", "module"] = "none"
    diagonal: int = 0
    gauss_newton: bool = False
    probes: int = 100
    path: bool = True
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    compute: Literal["auto", "float32"] = "auto"
    device: str = "cpu"
    checkpoint: Path | None = None
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """Recipe of the method."""
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
    def keeps_factors(self) -> bool:
        """Whether zeroth-order steps are kept as factors beside weights that are never written."""
        return self.masters == "factors" and self.recipe.base == "zeroth"

    @property
    def widens(self) -> bool:
        """Whether layers of 16-bit weights compute in float32."""
        return self.compute == "float32" or self.keeps_factors

    @property
    def moves_in_forward(self) -> bool:
        """Whether the base model is moved along directions inside the forward pass."""
        return self.perturb == "forward" or self.keeps_factors

    @property
    def differentiates_twice(self) -> bool:
        """Whether curvature is measured, for which the loss must have the second derivatives that autograd gives."""
        return bool(self.measure)

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

    def has_checkpoint(self) -> bool:
        """Whether the folder holds a checkpoint, of whichever run; imports nothing, as a signal handler may call it."""
        return self.folder is not None and any(self.folder.glob("after-*.safetensors"))

    def settings(self, *left_out: str) -> str:
        """All options but those named, and the model's GGUF file, as "name=value, name=value"."""
        from smoothlab.llm.models import file_identity

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        # Checkpoints of before there were several lack these.
        for name in ("generator", "masters", "parallel", "perturb", "variant"):
            if getattr(self, name) == getattr(Training, name):
                values.pop(name, None)
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
        dev: largest number of dev items, by which the best weights are selected; taken from the training split, at most
            a quarter of it.
        test: largest number of test items, from the published validation split; of a JSON Lines file a tenth is set
            apart for them.
        parts: number of equal parts in which a CPU computes each minibatch, one after the other; a GPU computes a
            single one. Runs under torchrun whose number of processes divides it give identical records; 1 is fastest
            for a single process.
        answer_tokens: length in tokens, end token included, up to which completions are short answers. Where no
            completion of dev and test is longer, answers are generated greedily, and their exact match and F1 (as in
            SQuAD) stand beside the loss; 0 generates none.
        calibrate: report the test accuracy by calibrated scores, too: each candidate's log-probability less that after
            a content-free prompt, as "N/A It was". Selection goes by plain scores.
        eval_every: number of steps between evaluations on the dev items.
        patience: number of evaluations on dev without a better one (more right answers, or as many at a lower loss; a
            lower loss alone with completions or texts) after which training stops; 0 never stops it.
        search: grid to search, each axis written NAME=A,B,... with the name eta_x, eta_y or mu, whose option it
            replaces, e.g. eta_x=1e-5,1e-4. Every combination is trained for at most --steps steps, and the one that is
            best on dev is tested.
        follow: number of steps between settings of the learning rates to a share of the stability limit that is
            predicted from the curvature at the present weights, step 0 the first: a quarter of the least of the last
            three limits. --eta-x and --eta-y are where that begins: a rate falls at once, and rises to at most 3 times
            the rate before. 0 keeps the rates as given.
        save: folder for the best weights: adapter/ for peft, with a classification head and, where it was trained, the
            base model; model/ for transformers, where the base model was trained.
        tensorboard: folder for TensorBoard's curves; none are written without it.
    """

    dev: int = 100
    test: int = 1000
    parts: int = 4
    answer_tokens: int = 16
    calibrate: bool = False
    eval_every: int = 25
    patience: int = 10
    search: tuple[str, ...] = ()
    follow: int = 0
    save: Path | None = None
    tensorboard: Path | None = None

    @property
    def differentiates_twice(self) -> bool:
        """Whether curvature is measured: for records, or to set the rates by."""
        return bool(self.measure) or self.follow > 0

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
