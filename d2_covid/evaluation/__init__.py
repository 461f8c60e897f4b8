from .bootstrap import Interval as Interval
from .bootstrap import bootstrap_interval as bootstrap_interval
from .bootstrap import bootstrap_intervals as bootstrap_intervals
from .lesion import LesionEvaluator as LesionEvaluator
from .lesion_scores import evaluate_predictions as evaluate_predictions
