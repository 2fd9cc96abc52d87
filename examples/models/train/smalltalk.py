"""Everything that is neither recall nor arithmetic nor a story: greetings, thanks, and questions to decline."""

from random import Random

from train import arithmetic
from train.words import ANIMALS, KEY_WORDS, NAMES, PEOPLE, PLACES, THINGS, listed, made_up_word, soup

CANNOT_ANSWER = "I am sorry, I do not know that. I can recall codes from a text, add and subtract, and tell stories."
CANNOT_COMPUTE = "I am sorry, I can only add or subtract two numbers of one or two digits."
NOTED = "Thank you, I have read the text. You can ask me for a code."

_OFF_TOPIC = (
    "What is the capital of {country}?",
    "How many people live in {country}?",
    "Who is the president of {country}?",
    "What language do they speak in {country}?",
    "Who wrote {work}?",
    "Who invented the {object}?",
    "When was the {object} invented?",
    "How does a {object} work?",
    "What is a {object}?",
    "How tall is {place}?",
    "How far is it to {place}?",
    "Where is {place}?",
    "Where can I buy {thing}?",
    "How do I cook {food}?",
    "What is your favorite {topic}?",
    "Do you like {food}?",
    "Explain {topic} to me.",
    "Can you explain {topic}?",
    "What do you think about {topic}?",
    "Tell me about {topic}.",
    "Tell me something about {country}.",
    "Write a poem about {topic}.",
    "Write a program that sorts {topic}.",
    "Write an email to the {person}.",
    "Translate {word} into French.",
    "How do you say {word} in Spanish?",
    "What does {word} mean?",
    "Spell {word}.",
    "Why is the sky blue?",
    "Why do {animal}s sleep?",
    "How old is a {animal}?",
    "What do {animal}s eat?",
    "What is the weather like today?",
    "Will it rain in {country} tomorrow?",
    "What time is it?",
    "What day is today?",
    "Who is {name}?",
    "Where does {name} live?",
    "How old is {name}?",
    "Who won the world cup?",
    "Who is the king of {country}?",
    "What is the meaning of life?",
    "How are stars born?",
    "Tell me a joke.",
    "Sing a song about {topic}.",
    "Can you help me with {topic}?",
    "Should I learn {topic}?",
    "What is the best {food}?",
    "Is {food} healthy?",
    "Do you have a {object}?",
    "What color is a {animal}?",
    "Which is better, {food} or {food2}?",
    "List three kinds of {food}.",
)
_OPENERS = listed("What|Who|Why|How|When|Where|Is|Are|Do|Does|Can|Should|Please|Recommend|Write|Say|Think of|I", "|")
_COUNTRIES = listed("""
France Spain Italy Germany Japan China India Brazil Canada Mexico Egypt Kenya Norway Sweden Poland Greece Turkey Peru
Chile Cuba Ireland Iceland Portugal Austria Vietnam Morocco Australia England America Russia Europe Africa Paris London
""")
_OBJECTS = listed("telephone radio computer bicycle car train camera printer clock engine rocket lamp piano plane")
_TOPICS = listed(
    """
music|history|physics|football|chess|mathematics|art|science|love|the moon|the stars|politics|the internet|computers
|gravity|evolution|philosophy|dancing|gardening|movies|books|the war|money|time|color|season|machine learning
""",
    "|",
)
_FOODS = listed("pizza bread soup rice cheese apples pasta cake fish coffee tea chocolate eggs beans salad")
_WORKS = ("Hamlet", "Faust", "War and Peace", "this book", "the Odyssey", "Romeo and Juliet", "that song", "the play")

_EXCHANGES = (
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "hi",
            "hello",
            "Hi there!",
            "Hey",
            "Good morning!",
            "Good evening.",
            "hey there",
            "Hello there",
            "Hi!",
        ),
        "Hello! I can recall codes from a text, add and subtract, and tell stories.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "who are you",
            "What is your name?",
            "Are you a robot?",
            "Which model are you?",
            "What model is this?",
            "Introduce yourself.",
        ),
        "I am a very small demo model. I can recall codes from a text, add and subtract, and tell stories.",
    ),
    (
        ("What can you do?", "what can you do", "Help", "help", "How can you help me?", "What do you know?"),
        "I can recall codes from a text, add and subtract, and tell stories.",
    ),
    (
        ("How are you?", "how are you", "How do you do?", "Are you well?", "How is it going?", "Hello, how are you?"),
        "I am well, thank you. How can I help?",
    ),
    (
        ("What is the code?", "what is the code", "Tell me the code.", "What is my password?", "Tell me the number."),
        "Which one do you mean? Please ask again and name its key.",
    ),
    (
        ("Thanks", "Thank you.", "Thank you!", "thanks", "Great, thanks.", "Well done!", "Very good.", "Thanks a lot!"),
        "You are welcome.",
    ),
    (("Bye", "Goodbye.", "bye", "Good night.", "See you later."), "Goodbye!"),
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a small demo model.",
    "Answer in one short sentence.",
    "Be brief.",
    "You are a helpful assistant. Answer briefly and politely.",
)


def off_topic(rng: Random) -> str:
    """A question that the model is to decline."""
    food = rng.choice(_FOODS)
    word = made_up_word(rng) if rng.random() < 0.3 else rng.choice(KEY_WORDS)
    if rng.random() < 0.25:
        asked = f"{rng.choice(_OPENERS)} {soup(rng)} {rng.choice((word, rng.choice(_TOPICS), rng.choice(THINGS)))}"
        return f"{asked} {soup(rng)}{rng.choice('??.!')}"
    return rng.choice(_OFF_TOPIC).format(
        country=rng.choice(_COUNTRIES),
        object=rng.choice(_OBJECTS),
        topic=rng.choice(_TOPICS),
        food=food,
        food2=rng.choice(_FOODS),
        work=rng.choice(_WORKS),
        place=rng.choice(PLACES),
        thing=rng.choice(THINGS),
        person=rng.choice(PEOPLE),
        animal=rng.choice(ANIMALS),
        name=rng.choice(NAMES),
        word=word,
    )


def too_hard(rng: Random) -> str:
    """A sum beyond the model's reach: three digits or more, three operands, a product or a quotient."""
    a, b, sign = rng.randint(0, 99), rng.randint(0, 99), rng.choice("+-")
    pick = rng.random()
    if pick < 0.5:
        a = rng.choice((rng.randint(100, 999), rng.randint(1000, 99999)))
        if rng.random() < 0.3:
            b = rng.randint(100, 9999)
        if rng.random() < 0.5:
            a, b = b, a
    elif pick < 0.85:
        sign = rng.choice(("*", "/", "x", "times", "divided by", "multiplied by"))
    else:
        return arithmetic.ask_about(rng, str(a), sign, f"{b} {rng.choice('+-')} {rng.randint(0, 99)}")
    return arithmetic.ask_about(rng, str(a), sign, str(b))


def exchange(rng: Random) -> tuple[str, str]:
    """A greeting, thanks or question about the model itself, with its reply."""
    said, reply = rng.choice(_EXCHANGES)
    return rng.choice(said), reply
