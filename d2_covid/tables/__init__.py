"""The paper's Tables 2 and 3 from one command (``tools/make_tables.py``): data, trainings, evaluations, tables."""
