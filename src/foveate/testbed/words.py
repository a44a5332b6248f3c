"""Every word the testbed knows, by role. Imports nothing, so that the tokenizer, the pictures and the questions
share one list.

`DENSE` are the words a visual token can mean: during training every patch is labelled with those that are true of
it, and the connector is asked to send the patch near the language model's own embeddings of these words.
"""

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = ("small", "big")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTER_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")  # place of a letter inside its word; never in a question
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
KINDS = ("object", "label", "tag", "bar", "front", "behind", "tallest", "shortest")

DENSE = (
    *COLOURS, *SHAPES, *SIZES, *ROWS, *COLUMNS, *NUMBERS, *LETTER_ORDINALS, *KINDS,
    *(f"'{c}" for c in LETTERS + DIGITS),  # 'a is the character a: the article "a" is another word
)  # fmt: skip
DENSE_INDEX = {word: i for i, word in enumerate(DENSE)}

QUESTION_WORDS = (
    "what", "which", "where", "how", "many", "is", "are", "there", "a", "an", "the", "of", "in", "on", "at", "to", "it",
    "color", "shape", "size", "value", "letter", "line", "column", "picture", "objects", "yes", "no", "read", "from",
    "above", "below", "than", "taller", "first", "second", "has", "its", "and", "side", "object", "number", "word",
)  # fmt: skip

# Real words that labels and pages may show. A quarter of them (chosen by `held_out`) appears only in evaluation pictures.
PAGE_WORDS = (
    "ant", "arm", "art", "ash", "axe", "bag", "bar", "bat", "bay", "bed", "bee", "big", "bit", "boat", "body",
    "bone", "book", "box", "boy", "bread", "brick", "bus", "cab", "cake", "calm", "camp", "can", "cap", "car",
    "card", "cat", "chair", "city", "clay", "clock", "cloud", "coal", "coat", "cod", "coin", "cook", "cool",
    "corn", "cow", "crab", "cream", "crow", "cup", "dark", "dawn", "day", "deep", "deer", "desk", "dish", "dog",
    "door", "dove", "dress", "drum", "dry", "duck", "dust", "eagle", "ear", "earth", "egg", "elm", "exit",
    "face", "fact", "farm", "fast", "fig", "film", "fin", "fire", "fish", "flag", "flat", "flour", "fly", "fog",
    "food", "foot", "fork", "fort", "fox", "frog", "fruit", "game", "gate", "gift", "glass", "glow", "goat",
    "gold", "grape", "grid", "gulf", "gum", "hall", "ham", "hand", "harp", "hat", "hawk", "hay", "heart",
    "herb", "hill", "hive", "home", "hook", "horn", "horse", "hotel", "hub", "ice", "ink", "iron", "jam", "jar",
    "jet", "joy", "jug", "juice", "kelp", "key", "kid", "king", "kite", "kiwi", "knot", "lake", "lamb", "lamp",
    "land", "lawn", "leaf", "lemon", "lime", "lion", "lock", "log", "loop", "map", "maple", "mask", "meal",
    "milk", "mill", "mint", "moon", "moss", "mouse", "mud", "nail", "nest", "net", "night", "nine", "north",
    "nut", "oak", "oat", "ocean", "olive", "onion", "orbit", "oven", "owl", "ox", "paint", "palm", "pan",
    "park", "path", "peach", "pear", "pen", "piano", "pie", "pig", "pine", "pink", "pipe", "plum", "pond",
    "pony", "pool", "pot", "quay", "queen", "quiz", "radio", "rain", "rice", "river", "road", "robin", "rock",
    "roof", "rope", "rose", "rug", "rye", "sail", "salt", "sand", "sea", "seed", "sheep", "ship", "shoe",
    "silk", "sky", "snow", "soap", "sock", "soup", "south", "spoon", "stamp", "steam", "stone", "storm",
    "sugar", "sun", "swan", "table", "tea", "tent", "tiger", "tile", "toad", "train", "tree", "tulip", "valve",
    "van", "vase", "vest", "vine", "wagon", "wall", "wasp", "water", "wave", "west", "whale", "wheat", "wind",
    "wing", "wolf", "wood", "wool", "yak", "yard", "year", "zebra", "zinc", "zone",
)  # fmt: skip


def held_out(word: str) -> bool:
    """Whether a page word belongs to evaluation pictures only (a fixed quarter of the list)."""
    return sum(ord(c) * (i + 3) for i, c in enumerate(word)) % 4 == 0
