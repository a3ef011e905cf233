/* The hottest functions of the engine, which say in C what they say in Python elsewhere.

   read(node)               reading.read, where the block's own pass has armed the module ahead
   setting(__setattr__)     the method, with reading.write where the pass stands at that module
   calling(AtOutput)        the class again, with arming.AtOutput's __call__ in C
   put_in(plain)            placed.put_in: the wrappers of a block that has run before
   take_out(placed, one)    placed.take_out: those wrappers again

   Whatever is not plainly the common case is handed to the Python before anything is done. Built by
   hatch_build.py; hot.py decides whether it is used. Over 400 lines: an extension is one file, or its
   parts need a header between them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#define VERSION 1 /* of what hot.py and this file agree upon */

/* What is asked of a thread without arguments: five modes, and which greenlet runs. */
typedef struct {
    PyCFunction function;
    PyObject *self;
} Question;

enum { GRAD, INFERENCE, AUTOCAST, FUNCTIONS, DISPATCHES, GREENLET, QUESTIONS };
static Question questions[QUESTIONS];

static PyObject *
ask(int which)
{
    return questions[which].function(questions[which].self, NULL);
}

/* A pass's attributes: where its slots are. */
typedef struct {
    const char *name;
    Py_ssize_t offset;
} Slot;

enum {
    NEAR, HERE, TRAIL, VALUE, ARGS, KWARGS, AT_OUTPUT, WANT_OUTPUT, BLOCK_MODES, MODEL_MODES,
    TO_BLOCK, TO_MODEL, WORKER, WRITES, SLOTS
};
static Slot slots[SLOTS] = {
    [NEAR] = {"near", 0}, [HERE] = {"here", 0}, [TRAIL] = {"trail", 0}, [VALUE] = {"value", 0},
    [ARGS] = {"args", 0}, [KWARGS] = {"kwargs", 0}, [AT_OUTPUT] = {"at_output", 0},
    [WANT_OUTPUT] = {"want_output", 0}, [BLOCK_MODES] = {"block_modes", 0},
    [MODEL_MODES] = {"model_modes", 0}, [TO_BLOCK] = {"to_block", 0}, [TO_MODEL] = {"to_model", 0},
    [WORKER] = {"worker", 0}, [WRITES] = {"writes", 0},
};
static Slot lease_run = {"run", 0};

#define ITEM(tuple, at) PyTuple_GET_ITEM(tuple, at)
#define PLACE(object, slot) (*(PyObject **)((char *)(object) + (slot).offset))
#define OF(run, which) PLACE(run, slots[which])

static void
put(PyObject *run, int which, PyObject *value)
{
    PyObject *before = OF(run, which);
    OF(run, which) = Py_NewRef(value);
    Py_XDECREF(before);
}

enum { FORWARD, HOOKS, COMPILED_CALL, APPEND, DTYPE, SHAPE, IS_CPU, EMPTY, SITE, RAISED, WORDS };
static const char *const texts[WORDS] = {
    "forward", "_forward_hooks", "_compiled_call_impl", "append", "dtype", "shape", "is_cpu", "",
    "output", "_raised",
};
static PyObject *words[WORDS];

/* What Python gives us, once: see the end of reading.py. */
static struct {
    PyObject *read, *begin_writes, *pass_type, *lease_type, *tensor_type, *active, *swap;
    PyObject *missed, *in_another_thread, *switch_error, *output;
} python;
#define IS_A(object, which) Py_IS_TYPE(object, (PyTypeObject *)python.which)

/* The modes of the side that is left, and those of the other in force: modes.swap, whose common
   half is here. Returns -1 when that raised. */
static int
exchange_modes(PyObject *run, int left, int to)
{
    PyObject *wanted = OF(run, to), *were = ask(GRAD), *special = NULL;
    if (were == NULL)
        return -1;
    int plain = were == wanted; /* a bool, so neither side has more than that */
    for (int which = INFERENCE; plain && which <= DISPATCHES; which++) {
        if ((special = ask(which)) == NULL) {
            Py_DECREF(were);
            return -1;
        }
        plain = special == Py_False || !PyObject_IsTrue(special);
        Py_DECREF(special);
    }
    if (!plain) {
        Py_DECREF(were);
        if ((were = PyObject_CallOneArg(python.swap, wanted)) == NULL)
            return -1;
    }
    PyObject *before = OF(run, left);
    OF(run, left) = were;
    Py_XDECREF(before);
    return 0;
}

/* Change places; 0 when the other side has come back. */
static int
change_places(PyObject *run, int to)
{
    PyObject *other = OF(run, to);
    if (other == NULL) {
        PyErr_SetString(PyExc_AttributeError, slots[to].name);
        return -1;
    }
    Py_INCREF(other);
    PyObject *nothing = PyObject_CallNoArgs(other);
    Py_DECREF(other);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

/* `(node, site, code, offset)`, of the instruction that runs in a frame; and `told`, if there is. */
static PyObject *
noted(PyObject *node, PyObject *site, PyFrameObject *frame, PyObject *told)
{
    if (frame == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a value is asked for where no Python runs");
        return NULL;
    }
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *at = PyLong_FromLong(PyFrame_GetLasti(frame)), *note = NULL;
    if (at != NULL)
        note = PyTuple_Pack(told == NULL ? 4 : 5, node, site, (PyObject *)code, at, told);
    Py_XDECREF(at);
    Py_DECREF(code);
    return note;
}

/* Note the node, and the instruction of the block that asks for it. */
static int
note_read(PyObject *run, PyObject *node)
{
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    PyObject *read = noted(node, python.output, frame, NULL);
    int failed = read == NULL || PyList_Append(OF(run, TRAIL), read) < 0;
    Py_XDECREF(read);
    Py_XDECREF(frame);
    return failed ? -1 : 0;
}

/* A read failed with an error that reading.read says something about. */
static void
tell(PyObject *run, PyObject *node)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    if (PyErr_GivenExceptionMatches(error, python.switch_error)) {
        PyObject *ours = PyObject_CallOneArg(python.in_another_thread, run);
        if (ours != NULL) {
            PyException_SetContext(ours, Py_NewRef(error));
            PyException_SetCause(ours, Py_NewRef(error));
            PyErr_SetObject((PyObject *)Py_TYPE(ours), ours);
            Py_DECREF(ours);
        }
    }
    else { /* an AttributeError: kept, or __getattr__ would be asked instead */
        PyObject *namespace = PyObject_GenericGetDict(node, NULL);
        if (namespace != NULL && PyDict_SetItem(namespace, words[RAISED], error) == 0)
            PyErr_Restore(Py_NewRef(type), Py_NewRef(error), Py_XNewRef(traceback));
        Py_XDECREF(namespace);
    }
    Py_DECREF(type);
    Py_DECREF(error);
    Py_XDECREF(traceback);
}

static PyObject *
read_armed(PyObject *run, PyObject *node, PyObject *module, PyObject *place)
{
    put(run, HERE, place);
    put(run, WANT_OUTPUT, module);
    if (note_read(run, node) < 0 || exchange_modes(run, BLOCK_MODES, MODEL_MODES) < 0
        || change_places(run, TO_MODEL) < 0)
        return NULL;
    if (OF(run, AT_OUTPUT) == module)
        return Py_NewRef(OF(run, VALUE));
    PyObject *error = PyObject_CallFunctionObjArgs(python.missed, run, node, python.output, NULL);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

/* The module and place of a node that the innermost pass has near; NULL also when that raised. */
static PyObject *
near_of(PyObject *node, PyObject **run)
{
    if (PyContextVar_Get(python.active, NULL, run) < 0 || *run == NULL || !IS_A(*run, pass_type))
        return NULL;
    return PyDict_GetItemWithError(OF(*run, NEAR), node);
}

static PyObject *
read_output(PyObject *Py_UNUSED(self), PyObject *node)
{
    PyObject *run = NULL, *near = near_of(node, &run), *value = NULL;
    if (near == NULL) {
        if (!PyErr_Occurred())
            value = PyObject_CallOneArg(python.read, node);
        Py_XDECREF(run);
        return value;
    }
    PyObject *module = ITEM(near, 0), *place = ITEM(near, 1);
    if (OF(run, AT_OUTPUT) == module)
        value = Py_NewRef(OF(run, VALUE));
    else if (PyObject_RichCompareBool(place, OF(run, HERE), Py_LT))
        value = PyObject_CallOneArg(python.read, node); /* it may not come any more */
    else {
        Py_INCREF(near);
        value = read_armed(run, node, module, place);
        Py_DECREF(near);
        if (value == NULL && (PyErr_ExceptionMatches(python.switch_error)
                              || PyErr_ExceptionMatches(PyExc_AttributeError)))
            tell(run, node);
    }
    Py_DECREF(run);
    return value;
}

/* Whether an attribute of two tensors is equal; -1 when that raised. */
static int
same(PyObject *one, PyObject *other, PyObject *name)
{
    int equal = -1;
    PyObject *of_one = PyObject_GetAttr(one, name), *of_other = NULL;
    if (of_one != NULL && (of_other = PyObject_GetAttr(other, name)) != NULL)
        equal = PyObject_RichCompareBool(of_one, of_other, Py_EQ);
    Py_XDECREF(of_one);
    Py_XDECREF(of_other);
    return equal;
}

/* Whether a tensor on the CPU may stand for another one there, else Python is to say; -1 when that
   raised. */
static int
fits(PyObject *value, PyObject *old)
{
    if (!IS_A(value, tensor_type) || !IS_A(old, tensor_type))
        return 0;
    PyObject *on_cpu = PyObject_GetAttr(value, words[IS_CPU]);
    Py_XDECREF(on_cpu);
    int fitting = on_cpu == NULL ? -1 : on_cpu == Py_True;
    for (int which = DTYPE; fitting > 0 && which <= IS_CPU; which++)
        fitting = same(value, old, words[which]);
    return fitting;
}

/* Note a write, and the instruction of the block that makes it. */
static int
note_write(PyObject *run, PyObject *node)
{
    PyObject *writes = Py_NewRef(OF(run, WRITES)), *nothing = NULL;
    if (writes == Py_None)
        Py_SETREF(writes, PyObject_CallOneArg(python.begin_writes, run));
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    PyObject *note = noted(node, words[SITE], frame, words[EMPTY]);
    if (writes != NULL && note != NULL)
        nothing = PyObject_CallMethodOneArg(writes, words[APPEND], note);
    Py_XDECREF(note);
    Py_XDECREF(frame);
    Py_XDECREF(writes);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

/* Whether the pass stands at a node's output and a value may stand for it; if so, it does. */
static int
write_output(PyObject *node, PyObject *value)
{
    PyObject *run = NULL, *near = near_of(node, &run);
    int written = near != NULL && OF(run, AT_OUTPUT) == ITEM(near, 0);
    if (written)
        written = fits(value, OF(run, VALUE));
    if (written > 0) {
        put(run, VALUE, value);
        written = note_write(run, node) < 0 ? -1 : 1;
    }
    Py_XDECREF(run);
    return PyErr_Occurred() ? -1 : written;
}

static PyObject *
set_attribute(PyObject *in_python, PyObject *const *given, Py_ssize_t count)
{
    int written = 0;
    if (count == 3 && given[1] == words[SITE])
        written = write_output(given[0], given[2]);
    if (written < 0)
        return NULL;
    return written ? Py_NewRef(Py_None) : PyObject_Vectorcall(in_python, given, count, NULL);
}

static PyMethodDef setting_method = {
    "__setattr__", (PyCFunction)(void (*)(void))set_attribute, METH_FASTCALL, NULL,
};

static PyObject *
setting(PyObject *Py_UNUSED(self), PyObject *in_python)
{
    PyObject *function = PyCFunction_New(&setting_method, in_python);
    PyObject *method = function == NULL ? NULL : PyInstanceMethod_New(function);
    Py_XDECREF(function);
    return method;
}

/* The model's side: `(lease, module, forward)` is called. */
static PyObject *
stand(PyObject *run, PyObject *module, PyObject *args, PyObject *kwargs, PyObject *output)
{
    put(run, WANT_OUTPUT, Py_None);
    put(run, AT_OUTPUT, module);
    put(run, ARGS, args);
    put(run, KWARGS, kwargs);
    put(run, VALUE, output);
    if (exchange_modes(run, MODEL_MODES, BLOCK_MODES) < 0 || change_places(run, TO_BLOCK) < 0)
        return NULL; /* a pass that is closed throws Exit here */
    return Py_NewRef(OF(run, VALUE));
}

static int
is_wanted(PyObject *run, PyObject *module)
{
    if (run == NULL || !IS_A(run, pass_type) || OF(run, WANT_OUTPUT) != module)
        return 0; /* what a lease has of a pass that is over is of another type */
    PyObject *here = ask(GREENLET);
    Py_XDECREF(here);
    return here != NULL && here == OF(run, WORKER);
}

static PyObject *
call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    Py_INCREF(self); /* a wrapper may be taken out while it runs */
    PyObject *lease = ITEM(self, 0), *module = ITEM(self, 1);
    PyObject *value = PyObject_Call(ITEM(self, 2), args, kwargs);
    PyObject *run = IS_A(lease, lease_type) ? PLACE(lease, lease_run) : lease;
    if (value != NULL && is_wanted(run, module)) {
        PyObject *output = value, *named = kwargs == NULL ? PyDict_New() : Py_NewRef(kwargs);
        Py_INCREF(run);
        value = named == NULL ? NULL : stand(run, module, args, named, output);
        Py_DECREF(run);
        Py_XDECREF(named);
        Py_DECREF(output);
    }
    Py_DECREF(self);
    return value;
}

static PyObject *
calling(PyObject *Py_UNUSED(self), PyObject *base)
{
    PyType_Slot own[] = {{Py_tp_call, call}, {0, NULL}};
    PyType_Spec spec = {"insitu.engine.arming.AtOutput", 0, 0, Py_TPFLAGS_DEFAULT, own};
    PyObject *bases = PyTuple_Pack(1, base);
    PyObject *type = bases == NULL ? NULL : PyType_FromSpecWithBases(&spec, bases);
    Py_XDECREF(bases);
    return type;
}

/* Whether a module is as it was when its reads were learned; if so, its wrapper is in. */
static int
put_in_one(PyObject *of)
{
    PyObject *siblings = ITEM(of, 0), *name = ITEM(of, 1), *module = ITEM(of, 2);
    PyObject *namespace = ITEM(of, 3), *forward = ITEM(of, 4), *wrapper = ITEM(of, 5);
    if (!PyDict_Check(siblings) || PyDict_GetItemWithError(siblings, name) != module)
        return 0;
    PyObject *hooks = PyDict_GetItemWithError(namespace, words[HOOKS]);
    if (hooks == NULL || PyObject_Size(hooks) != 0
        || PyDict_Contains(namespace, words[COMPILED_CALL]) != 0)
        return 0;
    PyObject *own = PyObject_GetAttr((PyObject *)Py_TYPE(module), words[FORWARD]);
    Py_XDECREF(own); /* its class holds it */
    return own == forward && PyDict_SetDefault(namespace, words[FORWARD], wrapper) == wrapper;
}

static PyObject *
put_in(PyObject *Py_UNUSED(self), PyObject *plain)
{
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(plain); at++) {
        if (!put_in_one(ITEM(plain, at))) {
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_FALSE;
        }
    }
    Py_RETURN_TRUE;
}

static PyObject *
take_out(PyObject *Py_UNUSED(self), PyObject *given)
{
    PyObject *placed, *one;
    if (!PyArg_ParseTuple(given, "O!O", &PyList_Type, &placed, &one))
        return NULL;
    for (Py_ssize_t at = PyList_GET_SIZE(placed) - 1; at >= 0; at--) {
        PyObject *entry = PyList_GET_ITEM(placed, at), *namespace = ITEM(entry, 0);
        int failed;
        if (ITEM(entry, 2) != Py_None || !PyDict_CheckExact(namespace)) {
            PyObject *nothing = PyObject_Call(one, entry, NULL);
            failed = nothing == NULL;
            Py_XDECREF(nothing);
        }
        else /* else another pass's stands over it, and will see that this one is over */
            failed = PyDict_GetItemWithError(namespace, words[FORWARD]) == ITEM(entry, 1)
                     && PyDict_DelItem(namespace, words[FORWARD]) < 0;
        if (failed || PyErr_Occurred())
            return NULL;
    }
    Py_RETURN_NONE;
}

static int
find_slot(PyObject *type, Slot *slot)
{
    PyObject *member = PyObject_GetAttrString(type, slot->name);
    if (member == NULL)
        return -1;
    int is_slot = Py_IS_TYPE(member, &PyMemberDescr_Type);
    if (is_slot)
        slot->offset = ((PyMemberDescrObject *)member)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%R.%s is no slot", type, slot->name);
    Py_DECREF(member);
    return is_slot ? 0 : -1;
}

/* Whether the functions of hot._load can be asked from here, without a call of Python's. */
static PyObject *
can_ask(PyObject *Py_UNUSED(self), PyObject *functions)
{
    if (PyTuple_GET_SIZE(functions) != QUESTIONS)
        Py_RETURN_FALSE;
    for (int which = 0; which < QUESTIONS; which++) {
        PyObject *function = ITEM(functions, which);
        if (!PyCFunction_Check(function) || PyCFunction_GET_FLAGS(function) != METH_NOARGS)
            Py_RETURN_FALSE;
    }
    for (int which = 0; which < QUESTIONS; which++) {
        PyObject *function = ITEM(functions, which);
        questions[which].function = PyCFunction_GET_FUNCTION(function);
        questions[which].self = PyCFunction_GET_SELF(function);
        Py_INCREF(function);
    }
    Py_RETURN_TRUE;
}

static PyObject *
bind(PyObject *Py_UNUSED(self), PyObject *all)
{
    Slot found[SLOTS], found_run = lease_run;
    memcpy(found, slots, sizeof(found));
    if (PyTuple_GET_SIZE(all) * sizeof(PyObject *) != sizeof(python)) {
        PyErr_SetString(PyExc_TypeError, "reading.py and _hot.c do not go together");
        return NULL;
    }
    for (int which = 0; which < SLOTS; which++)
        if (find_slot(ITEM(all, 2), &found[which]) < 0)
            return NULL;
    if (find_slot(ITEM(all, 3), &found_run) < 0)
        return NULL;
    memcpy(slots, found, sizeof(found));
    lease_run = found_run;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(all); at++)
        ((PyObject **)&python)[at] = ITEM(all, at);
    Py_INCREF(all); /* all of them, for good */
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"read", read_output, METH_O, "What the module returned: see insitu.engine.reading."},
    {"setting", setting, METH_O, "A `__setattr__` that writes an output here: see reading.write."},
    {"calling", calling, METH_O, "arming.AtOutput, called in C."},
    {"put_in", put_in, METH_O, "Put the wrappers in that were learned: see insitu.engine.placed."},
    {"take_out", take_out, METH_VARARGS, "Take wrappers out: see insitu.engine.placed."},
    {"can_ask", can_ask, METH_VARARGS, "Whether a thread's modes can be asked for from C."},
    {"bind", bind, METH_VARARGS, "Give what the functions here need to know."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "insitu.engine._hot", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__hot(void)
{
    for (int which = 0; which < WORDS; which++)
        if ((words[which] = PyUnicode_InternFromString(texts[which])) == NULL)
            return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "VERSION", VERSION) < 0)
        Py_CLEAR(made);
    return made;
}
