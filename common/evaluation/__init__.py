"""How good a mask is: scores per patient, their comparison with intervals, figures, reports."""
