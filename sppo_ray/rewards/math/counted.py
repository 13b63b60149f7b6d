"""Nouns of things that are counted: the only words, beside units, that an answer may add to a
number.

Every other word could change the value: a magnitude (octillion), a fraction (sixteenths), a
function (log), a base (in binary). A list of those never ends; this one may, because a noun that it
lacks still counts when the ground truth or the question names it.
"""

from __future__ import annotations

import re

_LIST = """
account actor adult airplane album alien almond amu angle animal ant apartment apple applicant appointment
arc arrangement article artist assignment athlete attempt attendee audience aunt baby backpack badge bag
bagel ball balloon banana barrel basket battery bead bean bear bed bee beetle belt bench berry bicycle bike
bills bin binder bird birthday bishop black blanket block blue blueberry board boat bolt book boot bottle
bowl box boy bracelet branch breakfast brick bridge brother brown brush bucket bug building bulb bull bun
bunny burger burrito bus bush butterfly button cabinet cake calf call camel camera camper can candidate
candle candy cap car carat card carrot cart carton case cashier cat caterpillar cell chair chapter character
checker chef cherry chest chicken child chip chocolate choice chord chore church circle citizen city class
classroom clerk clip clock club coat code codeword coefficient coffee coin color coloring colour colouring
column comb combination committee competitor component computer concert cone configuration contestant cook
cookie corner country coupon cousin cow crab cracker crate crayon crew cricket cubes cuboid cucumber cup
cupcake curtain customer cycle cyclist cylinder daisy dancer daughter deer desk diagonal diamond dice die
digits dinner disc disk divisor doctor dog doll dolphin domino donut door doughnut draw drawer drawing dress
drink driver duck dwarf eagle earring edge egg element elephant elf ellipse email employee empty engineer
entry envelope episode equation eraser errors event exam exercise fabric face factor fair family farm farmer
father feather female fence field file film finalist fish flag flight flip floors flour flower fly folder
fork fox fps freshman friend frog fruit full function game garden gate gear gem gift giraffe girl glass
glove goal goat gold golfer goose grape graph grasshopper gray green grey grid group guard guest gumball
hamburger hammer hamster handshake hat hen hexagon hit holiday home horse hospital hotdog hotel house human
hyperbola individual inequality ingredient insect integer intersection interval item jacket jar jewel job
judge jug juice junior juror kangaroo key kid king kite kitten knave knife knight knot koala labeling ladder
ladybug lamb lamp lap laptop lawyer leaf leg lemon lesson letter lever liar library light lime line lineup
lion lizard loaf lobster lock lollipop lumen lunch lux magazine male man manager mango marble marker
marshmallow match mathematician meal medal meeting melon member message milk mirror mistakes money monkey
monomial monster mosquito mother motorcycle mouse move movie muffin mug multiples museum nail napkin natural
necklace needed neighbor neighbour nest new newspaper node note notebook novel number nurse nut object
octagon octopus office officer oil old onion option orange ordered otter outcome owl owner ox pack package
packet page paint painting palindrome pan pancake panda pane panel paper paperclip parabola paragraph
parallelogram parent park parrot participant partition party passcode passenger password path patient
pattern paw pawn pea peach peanut pear pearl pebble pen pencil penguin pentagon pepper perfect permutation
person phone photo photograph picture pie piece pig pigeon pillow pineapple pink pipe pirate pitcher pixel
pizza plane planet plank plant plate player plum poem points pole polygon polyhedron polynomial pony
possibility post postcard poster pot potato present pretzel primes prince princess printer prism prisoner
prize problem products professor program project psi pupil puppy purple puzzle pyramid quadrilateral queen
question quiz rabbit race radio raspberry rat ray reader real recipe rectangle red region required resident
rhombus ribbon rice ride rider ring road robot rock rook room rooster rope rose rounds route row rpm rug
ruler runner sachet sailor sand sandwich scarf school scientist scoop scooter scout screw seal seat seating
seed segment senior sentence sequence serving session sets share shark sheep sheet shelf shell shift ship
shirt shoe shop shot show sibling side silver singer sister skater skirt slice small snack snail snake sock
soda sofa soldier solution son song sophomore sparrow sphere spider spoon spy squares squirrel stair stamp
star starfish state station step stick sticker stone store story strawberry street string student subscriber
subset sugar suitcase swan sweater sweet swimmer switch symbol table tablespoon tablet taco tail tall tank
task tea teacher team teaspoon teenager television tenant tent term test tetrahedron thick thing throw
ticket tie tiger tile tiling tin tire toad token tomato tool toss tourist tournament towel tower town toy
train trapezoid tray tree trial triangle trip trophy truck try tulip tunnel tuples turkey turn turtle tyre
umbrella uncle unique unordered urn us user valid value van variable vegetable vertex video village visit
visitor volunteer vote voter wagon waiter walk wall walnut watch water watermelon way whale wheel white
whole wide win window wing winner wire wizard wolf woman wood word worker worm writer yellow zebra
"""
_NOUNS = frozenset(_LIST.split())
_ADJECTIVES = frozenset([
    "real", "natural", "whole", "perfect", "ordered", "unordered", "unique", "valid", "full", "fair", "small",
])  # fmt: skip
"""Counted only with a noun: 6 real solutions, but not 6 real."""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose",
    "oxen": "ox", "vertices": "vertex", "loaves": "loaf", "leaves": "leaf", "knives": "knife",
    "shelves": "shelf",
    "wolves": "wolf", "calves": "calf", "elves": "elf", "dwarves": "dwarf",
}  # fmt: skip
_CHINESE = re.compile(
    "[个個只隻本张張人名位條条種种块塊件次岁歲页頁辆輛棵支枝颗顆台架朵头頭匹"
    "组排行列面层層桶箱袋瓶杯盒包份道题題句字点點分]"
    "[^个個半亿億万萬千百十倍分成折负負之不错錯非点點多余几一二三四五六七八九零〇两两加减減乘除每方数數外下上反少前后後以内]{0,6}"
)
"""A measure word and what it counts; 个亿, 个半 and 个百分点 are other values."""
_ASKED = re.compile(
    r"\b(?:how many|number of)\s+(?:of\s+(?:the|these|those|his|her|its|their|our|my|your)\s+)?"
    r"((?:[a-z][a-z'-]*\s+){0,3}[a-z][a-z'-]*)",
    re.IGNORECASE,
)
_ENDS_NOUN = frozenset([
    "of", "to", "in", "on", "at", "for", "with", "that", "which", "who", "is", "are", "was", "were", "do",
    "does", "did", "can", "could", "will", "would", "must", "has", "have", "had", "be", "is", "there", "he",
    "she", "they", "it", "you", "we", "i", "if", "not", "no", "without", "per", "and", "or",
])  # fmt: skip


def singular(word: str) -> str:
    """The form of a word in which its singular and its plural are equal: apples as apple."""
    candidates = (word, _IRREGULAR.get(word, word), word.removesuffix("s"), word.removesuffix("es"),
                  re.sub("ies$", "y", word))  # fmt: skip
    found = next((form for form in candidates if form in _NOUNS), None)
    return found or (word if len(word) < 4 or word.endswith("ss") else word.removesuffix("s"))


def is_counted(word: str) -> bool:
    """Whether a word, as `singular` gives it, names things that are counted, or says how they
    look.
    """
    return word in _NOUNS or _CHINESE.fullmatch(word) is not None


def is_adjective(word: str) -> bool:
    """Whether a word says only with a noun behind it what is counted."""
    return word in _ADJECTIVES


def counted_in(question: str) -> frozenset[str]:
    """The words between "how many" or "number of" and the end of what is counted, as `singular`
    gives them.
    """
    found = set()
    for phrase in _ASKED.findall(question):
        for word in phrase.casefold().split():
            if word in _ENDS_NOUN:
                break
            found.add(singular(word))
    return frozenset(found)
