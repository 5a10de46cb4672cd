"""``ci/verdict-check``: random cases whose truth is known by construction, and their verdicts.

``plan`` is pure: which situations there are, what each must come to, and which cases a seed makes.
``acts`` brings a situation about, ``run`` runs one case, ``matrix`` adds up.
"""
