"""What the pages of the zoo say in words; figures come from records."""

WILSON = "Wilson for proportions, else "
"""What goes before "bootstrap over slices" where intervals are of classes of slices whose patients are unknown."""

_AS_PAPER_TRAINS = (
    "the paper's training of the classifier (module S and BatchNorm, 8 slices at a time, learning rate 0.00001) on the "
    "row's lesion model, whose pixels, anchors, proposals and thresholds stay its own"
)
RECIPES = {
    "tuned": "`configs/Base-LesionMaskRCNN-tuned.yaml` as it stands: 9 passes at 384 pixels, made for half an hour on "
    "one CPU core",
    "tuned_3x": "the tuned recipe, three times as long",
    "tuned_512": "goes on from `tuned` (from phantoms, the same seed) with 8 passes at 512 pixels; its seconds come on "
    "top of that row's",
    "tuned_long": "the tuned recipe, longer and larger, for a GPU",
    "paper": "the paper's, as published: 100 passes, one slice at a time, learning rate 0.00001",
    "paper_bf16": "the paper's whole recipe, its forward and backward passes in bfloat16: on a CPU that has it, little "
    "more than half the time",
    "paper_9": "the first 9 of the paper's 100 passes, as many as `tuned` has, at the paper's 512 pixels",
    "paper_batch8": "the paper's with eight slices at a time and eight times its learning rate, which takes a GPU less "
    "time; not as published",
    "classifier": "`configs/classification/tuned/`: BatchNorm frozen, detections ranked once, module S trains on them",
    "classifier_5": "the same in 5 passes: in 50, module S learns so few slices by heart, and is sure of what it "
    "gets wrong",
    "classifier_paper": f"50 passes of {_AS_PAPER_TRAINS}",
    "classifier_paper_bf16": f"50 passes of {_AS_PAPER_TRAINS}; forward and backward in bfloat16: on a CPU that has "
    "it, half the time",
    "classifier_paper_5": f"the first 5 of 50 passes, as many as `classifier_5` has, of {_AS_PAPER_TRAINS}",
}
"""What a recipe is, by its name."""

ZOO_HEAD = """\
# Model zoo

<!-- Written by `python tools/model_zoo.py table` from docs/zoo; do not edit by hand. -->

What the models of d2_covid reach on a selection of public chest CT ([datasets/README.md](datasets/README.md) says which
slices), trained by the commands below. Research software, no medical device: the figures are of the few patients that
they name, and hold for no other.
"""

LESION_NOTES = """\
- **What is counted.** *Mask AP, AP50, AP75* and *box AP* are COCO's, in percent, over all slices at once, up to 128
  detections each. *Paper's AP* is the paper's own measure: slice by slice, then averaged; a slice without a lesion
  where nothing scores above 0.75 counts 100. *Dice* is that of the united masks, a slice's mean; *pooled*, over all
  pixels. [GETTING_STARTED.md](GETTING_STARTED.md) says more. *Parameters* are weights and BatchNorm statistics; the
  tuned recipe has 15 anchors a place and the paper's 30, hence the small differences.
- **Spread.** Mean ± sample standard deviation over the seeds that finished (*seeds*). It tells how much a seed matters
  on the same data, and nothing of other patients. For that look at the 95 % intervals below, by bootstrap over
  patients, from the lowest end to the highest among the seeds. {patients} patients are few: intervals that resample
  so few are too narrow.
- **Chosen on this split.** The tuned recipe's values were chosen by their figures on these validation slices, so its
  figures are optimistic. The paper's recipe was not. Every figure is of the model at the end of its training, never
  of the best one on the way.
- **Batches of one.** The paper's recipe trains on one slice at a time. BatchNorm then learns with that slice's own
  statistics, and these rows predict with running ones, as is usual. By `TEST.NORM_STATISTICS slice` they would find
  several times as much; [GETTING_STARTED.md](GETTING_STARTED.md#the-papers-recipe-and-the-tuned-one) has the figures.
- **Patients.** `radiopaedia` 1 and 4 and `coronacases` 6 and 7 validate, the others train. `radiopaedia` 2 and 3 are
  two reconstructions of one scan: what counts as 9 patients to train on is 8 people. No patient is on both sides.
- **Seconds.** *Steps* is the training alone, summed up from the log (the median of every 20 iterations); *all* is from
  start to end by the clock, with start-up, checkpoints and evaluation. Where trainings shared a device (*at a time*),
  each took longer than it would have alone; and rows were run on different days, when other work slowed the machine
  more or less. A row whose *all* is far above its *steps* stood still for a while: see its *steps*. The time of the
  training on phantoms comes on top.
"""

OTHER_START = """\
- **Started from an earlier training.** The model that these started from was made by the same command as the one whose
  figures stand here, before it was trained again, with other rounding:"""

COMMANDS_HEAD = """\
The commands of the rows, for the first seed. The data is made by `python tools/model_zoo.py data --source DIR`;
`python tools/model_zoo.py run --grid NAME` runs all rows of a recipe, with `--jobs N` several at a time.
"""

CLASSIFIER_HEAD = """\
COVID-CT-Mask-Net on COVID-CT, figures cut from publications, in the published split: {train} to train, {val} to
validate; two classes, COVID-19 and not. The set names no patients: slices of one person may stand beside each other,
so intervals are too narrow, and figures of one publication share its style. Nothing here is shown to hold for CT
series. *Lesion model* is what the classifier reads its detections from: unless a file was given, the one of its kind
with the best mask AP50 on the validation split above at the time; later seeds may be better. *Calibration error* is
the expected one, by 10 bins: how far the scores are from the shares that are right.
"""

PHANTOM_HEAD = """\
The models that the rows *from phantoms* start from; those of the paper's recipe need its anchors (`phantom_paper`).
Phantoms are generated pictures, no scans of people.
"""

PEER_HEAD = """\
[mayaku](https://pypi.org/project/mayaku/) is a library like Detectron2. Its smallest ResNet is ResNet50, never
truncated; FPN level, anchors, thresholds and heads are those of the row that it stands below. It trained on the same
slices from scratch, in batches of the same size, with the same optimiser and learning rate, for as many
seconds on as many threads; on a CPU it computes in float32, where d2_covid has bfloat16. Slices are read, flipped,
scheduled and evaluated (COCO's figures) by its own code. So few passes from nothing say how fast it begins, not what
it can reach.
"""

PAPER_HEAD = """\
From A. Ter-Sarkisov, *Lightweight Model For The Prediction of COVID-19 Through The Detection And Segmentation of
Lesions in Chest CT Scans*, Tables 1 to 3, in percent. **Nothing here was measured by d2_covid.** Other data (CNCB and
COVIDx-CT), another split, other machines: not to be compared with the tables above. Its AP is the *paper's AP*, not
COCO's.
"""

CARD_HEAD = """\
# Model card

<!-- Written by `python tools/model_zoo.py card` from d2_covid/models/*.json; do not edit by hand. -->

The weights that ship with d2_covid. **Research software, not a medical device:** nothing here is for diagnosis or for
any decision about a person. Figures name their data, its size and its split, and hold for no other. `d2-covid models`
lists these models and `d2-covid models NAME` shows a card; [MODEL_ZOO.md](MODEL_ZOO.md) has the trainings that they
were chosen from.
"""

CARD_NONE = """\
This copy ships none.
"""
