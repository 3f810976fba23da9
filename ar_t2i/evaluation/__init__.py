"""How good are the pictures: metrics, judges and reports."""
