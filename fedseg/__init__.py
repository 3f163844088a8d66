"""fedseg: hospitals train one fetal brain MRI segmentation model together; no scan leaves its hospital."""

__version__ = "0.1.0"
