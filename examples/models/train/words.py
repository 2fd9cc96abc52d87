"""Word lists the text generators draw from, and words made up from syllables."""

from random import Random
from zlib import crc32


def listed(text: str, separator: str | None = None) -> list[str]:
    """The entries of a list written as running text, set apart by spaces or by `separator`."""
    return [entry.strip() for entry in text.split(separator)]


KEY_WORDS = listed("""
amber ash basil beacon birch blossom breeze bronze cedar cinder clay clover cobalt copper coral cotton crimson crystal
dahlia dawn delta desert dune dusk ebony echo ember emerald falcon feather fern flint forest frost garnet ginger
glacier gold granite grove harbor hazel heather heron hickory honey indigo iris island ivory ivy jade jasmine juniper
kestrel lagoon lantern laurel lavender lemon lilac lily lotus magnet mango maple marble marigold meadow meteor mint
mist moss mustard myrtle nectar nettle nickel nutmeg oak oasis ocean olive onyx opal orange orbit orchid otter oyster
panther pearl pebble pepper pine planet plum pollen poppy prairie quail quartz quill rain raven reef ripple river
robin rocket rose ruby saffron sage salmon sand sapphire scarlet shadow shell sienna silver slate snow solar sparrow
spruce star stone storm summit sunset swan tangerine teal thistle thunder tiger timber topaz tulip tundra turquoise
umber valley vanilla velvet violet walnut wheat willow winter wolf yarrow zenith zephyr zinc
anchor apple arrow badge banjo barrel basket bell bicycle blanket bottle bridge bucket button cabin camera candle
carpet castle chair clock cloud compass cookie crown dragon drum engine fiddle fountain garden guitar hammer helmet
house jacket kettle kitten ladder lake library mirror monkey mountain museum needle notebook paper pencil piano pillow
pirate pocket puzzle rabbit radio ribbon robot saddle scarf school spoon table teapot ticket tower train tunnel
turtle umbrella village wagon window wizard zebra blue red green black white yellow purple alpha beta gamma omega
north south east west lion bear eagle dolphin whale shark mouse horse sheep goat goose duck cat dog bird fish
""")

ADJECTIVES = listed("""
blue red green black white golden quiet old little tall bright dark cold warm wild gentle hidden broken early late
round heavy narrow silent rusty polished striped frozen hollow northern
""")

NAMES = listed("""
Alice Bob Carol David Emma Frank Grace Henry Ines Jack Karin Leo Maria Nora Oscar Paula Quentin Rosa Sam Tina Ursula
Victor Wanda Xenia Yusuf Zoe Anna Ben Clara Daniel Elena Felix Gina Hugo Ida Jonas Kim Lena Max Nina Otto Peter Ruth
Simon Theo Uma Vera Will Yara Aisha Boris Chen Diego Fatima Hana Igor Kofi Lina Mira Omar Priya Ravi Sara Tomas
""")

NUMBERED = listed("room gate box locker door shelf desk line track unit team bus node slot")

LETTERS = listed("a b c d e f g h j k m n p q r s t u v w x y z")

COMMON = listed("""
please again now then here there today maybe really just also still hello sorry well so quick if would could should can
may will you me my we our this that these some any every need want have had get know say said think see look find give
tell show help work out check write read open close me it is was be been are do did does what which who how when where
why the a an of to in on at with from about for by and or but not no yes once more last first next good right exactly
friend morning time people thing question answer note list line word back after before
""")

PEOPLE = listed(
    """
miller|baker|teacher|sailor|farmer|doctor|painter|gardener|captain|singer|postman|shepherd|tailor|student|librarian
|carpenter|fisherman|traveler|musician|clockmaker
""",
    "|",
)

PLACES = listed(
    """
the market|the harbor|the station|the old bridge|the library|the school|the garden|the river|the village|the mill
|the hill|the museum|the lighthouse|the forest|the lake|the town square|the bakery|the workshop|the castle|the field
""",
    "|",
)

TIMES = listed(
    """
in the morning|before noon|after lunch|in the evening|at night|on Monday|on Tuesday|on Friday|last week|yesterday
|in spring|in summer|in autumn|in winter|every day|once a year|a long time ago|before the rain|after the storm
""",
    "|",
)

THINGS = listed(
    """
a letter|a basket of apples|an old map|a wooden box|a warm coat|a loaf of bread|a small lamp|a bag of seeds
|a silver coin|a blue umbrella|a book about birds|a cup of tea|a new key|a long rope|a jar of honey|a painted door
|a heavy stone|a box of nails|a red scarf|a broken clock
""",
    "|",
)

ANIMALS = listed("""
fox cat dog rabbit bear owl mouse wolf turtle duck horse dragon goat sparrow squirrel hedgehog otter robot elephant
penguin frog lion deer whale bee raven donkey pig hen kitten
""")

_ONSETS = listed("b br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sl st t th tr v w x y z")
_VOWELS = listed("a e i o u a e i o u ai ea ee oo ou")
_ENDINGS = listed("b ck d g k l m n nd nt p r rk s sh st t th x")


def soup(rng: Random) -> str:
    """One to four common words in no order, to stand for wordings that no template foresees."""
    return " ".join(rng.choices(COMMON, k=rng.randint(1, 4)))


def is_held_out(text: str) -> bool:
    """Whether a made-up key or a sum is kept out of training: one in ten, chosen by a checksum of its text."""
    return crc32(text.encode()) % 10 == 0


def made_up_word(rng: Random, *, held_out: bool = False) -> str:
    """A pronounceable word of two or three syllables, from the training or from the held-out share of such words."""
    while True:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
        word = "".join(syllables) + (rng.choice(_ENDINGS) if rng.random() < 0.6 else "")
        if is_held_out(word) == held_out:
            return word
