"""Reports: the paper's tables with measured rows, plots and pictures. May import scoring and build."""
