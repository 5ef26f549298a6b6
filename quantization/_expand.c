/* Expansion of packed codes to int8: what a device does with every weight when it loads a model.

   The layout is that of quantization/packing.py: code i takes the bits [i*b, (i+1)*b) of a little-endian bit stream.
   Eight codes are b bytes: they are read as one word, whose fields are then spread in three steps, each of which halves
   groups of codes and moves the upper halves up. No table, and no instruction that a phone lacks. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "needs GCC or Clang and little-endian numbers; without this module packing.py expands codes with numpy"
#endif

/* Two words side by side: 128 bits, which SSE2 and NEON both have. */
#define WORDS 2
typedef uint64_t words_t __attribute__((vector_size(8 * WORDS)));

#define IN_EVERY_BYTE 0x0101010101010101ULL

/* Return words whose eight fields of b bits, in their low 8*b bits, lie in one byte each, as two's complement. */
static inline words_t spread(words_t words, const int b)
{
    const uint64_t fours = (1ULL << (4 * b)) - 1, twos = (1ULL << (2 * b)) - 1, ones = (1ULL << b) - 1;
    const uint64_t low_twos = twos | twos << 32, low_ones = ones * 0x0001000100010001ULL;
    const uint64_t sign = IN_EVERY_BYTE << (b - 1);
    words = (words & fours) | ((words << (32 - 4 * b)) & (fours << 32));
    words = (words & low_twos) | ((words << (16 - 2 * b)) & (low_twos << 16));
    words = (words & low_ones) | ((words << (8 - b)) & (low_ones << 8));
    /* (x ^ sign) - sign in every byte; 128 more keeps it positive, so that no byte borrows from the next. */
    return ((words ^ sign) + (128 * IN_EVERY_BYTE - sign)) ^ (128 * IN_EVERY_BYTE);
}

static inline words_t read_words(const uint8_t *place, const int b)
{
    words_t words;
    for (int i = 0; i < WORDS; i++) {
        uint64_t word;
        memcpy(&word, place + i * b, sizeof word);
        words[i] = word;
    }
    return words;
}

/* Write `count` codes of b bits; b is a constant at every call, so that the compiler knows all masks. */
static inline void expand(const uint8_t *source, size_t size, uint8_t *target, size_t count, const int b)
{
    const size_t codes_each = 8 * WORDS, bytes_each = (size_t)b * WORDS;
    const size_t last_read = bytes_each - (size_t)b + 8; /* from a pair's first byte to behind its last word's 8 */
    size_t from = 0, to = 0;
    for (; to + codes_each <= count && from + last_read <= size; from += bytes_each, to += codes_each) {
        const words_t codes = spread(read_words(source + from, b), b);
        memcpy(target + to, &codes, sizeof codes);
    }
    for (; to < count; from += bytes_each, to += codes_each) { /* the last few, of a copy with room behind it */
        uint8_t packed[16 * WORDS] = {0};
        memcpy(packed, source + from, size - from < bytes_each ? size - from : bytes_each);
        const words_t codes = spread(read_words(packed, b), b);
        memcpy(target + to, &codes, count - to < codes_each ? count - to : codes_each);
    }
}

static void expand_width(const uint8_t *source, size_t size, uint8_t *target, size_t count, int bit_width)
{
    switch (bit_width) {
    case 2: expand(source, size, target, count, 2); break;
    case 3: expand(source, size, target, count, 3); break;
    case 4: expand(source, size, target, count, 4); break;
    case 5: expand(source, size, target, count, 5); break;
    case 6: expand(source, size, target, count, 6); break;
    default: expand(source, size, target, count, 7); break;
    }
}

static PyObject *expand_into(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer source, target;
    int bit_width;
    if (!PyArg_ParseTuple(arguments, "y*iw*", &source, &bit_width, &target))
        return NULL;
    const size_t size = (size_t)source.len, count = (size_t)target.len;
    const int fits = bit_width >= 2 && bit_width <= 7 && count <= SIZE_MAX / 8
                     && size == (count * (size_t)bit_width + 7) / 8;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        expand_width(source.buf, size, target.buf, count, bit_width);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, "%zd bytes cannot hold %zd codes of %d bits", source.len, target.len, bit_width);
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"expand_into", expand_into, METH_VARARGS,
     "expand_into(source, bit_width, target)\n--\n\n"
     "Write the codes of 2 to 7 bits packed in `source` to `target`, one int8 each, as many as it holds.\n\n"
     "Raises ValueError where the sizes do not fit. Lets other threads run meanwhile."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_expand", "Expansion of packed codes to int8.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__expand(void)
{
    return PyModule_Create(&definition);
}
