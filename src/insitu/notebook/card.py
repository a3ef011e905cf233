"""The run card: what a `%%trace` cell met, wrote and moved, under the cell.

    show(Card(model="GPT2LMHeadModel", visits=recorder.visits, …))

The facts are a frozen `Card`; `card_html` and `card_text` draw it.
"""

from IPython.display import display

from insitu.notebook import card_html, card_text
from insitu.notebook.card_facts import Card


def show(card: Card) -> None:
    """Display a card below the running cell, as HTML and as text."""
    display({"text/html": card_html.page(card), "text/plain": card_text.page(card)}, raw=True)
