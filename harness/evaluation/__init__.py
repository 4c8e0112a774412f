"""From a network and pictures to counts: the one evaluator, boundaries, tiles, checks of counts."""
