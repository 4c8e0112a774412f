"""The verbs of ``wsss`` that the engine brings; each module is imported when its verb is used."""
