/* SPDX-License-Identifier: MIT */
/*
 * test_error.c - core/error.c, vmm_strerror() and vmm_version().
 */
#include "unit.h"

#include "../../core/error.h"

static void test_fail(void **state)
{
	struct vmm_error err;
	char name[400];

	(void)state;
	memset(&err, 0xff, sizeof(err));
	assert_int_equal(fail(&err, VMM_EFORMAT, "%s: %d", "file", 3), VMM_EFORMAT);
	assert_int_equal(err.code, VMM_EFORMAT);
	assert_int_equal(err.os_errno, 0);
	assert_string_equal(err.message, "file: 3");
	assert_int_equal(fail(NULL, VMM_EINVAL, "nobody hears"), VMM_EINVAL);

	/* A line that is too long is cut, and ends. */
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	fail(&err, VMM_EINVAL, "%s", name);
	assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
	assert_int_equal(fail_sys(&err, ENOENT, "%s", name), VMM_ESYS);
	assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
	assert_int_equal(err.os_errno, ENOENT);
}

static void test_fail_sys(void **state)
{
	struct vmm_error err;

	(void)state;
	assert_fails(fail_sys(&err, EACCES, "open %s", "/x"), VMM_ESYS,
		     "open /x: Permission denied");
	assert_int_equal(err.os_errno, EACCES);
	assert_fails(fail_sys(&err, ENOMEM, "RAM"), VMM_ENOMEM, "RAM: ");
	assert_int_equal(fail_sys(NULL, EPERM, "nobody hears"), VMM_ESYS);
	assert_fails(fail_sys(&err, EACCES, "open %s", "/a\nb\x1b[2J"), VMM_ESYS,
		     "open /a?b?[2J: Permission denied");
	/* A number without a name still gives a sentence. */
	assert_fails(fail_sys(&err, 4000, "thing"), VMM_ESYS, "thing: ");
}

static char logged[300];
static int logged_level;

static void keep(void *arg, int level, const char *line)
{
	assert_ptr_equal(arg, logged);
	logged_level = level;
	snprintf(logged, sizeof(logged), "%s", line);
}

static void test_log(void **state)
{
	const struct log to = { keep, logged }, nowhere = { NULL, NULL };
	char name[400];

	(void)state;
	log_line(&to, VMM_LOG_WARN, "disk %s", "full");
	assert_string_equal(logged, "disk full");
	assert_int_equal(logged_level, VMM_LOG_WARN);
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	log_line(&to, VMM_LOG_ERROR, "%s", name);
	assert_int_equal(strlen(logged), 255);
	log_line(&nowhere, VMM_LOG_ERROR, "silence");
}

static void test_names(void **state)
{
	int i;

	(void)state;
	assert_string_equal(vmm_strerror(0), "VMM_OK");
	assert_string_equal(vmm_strerror(VMM_ESTATE), "VMM_ESTATE");
	assert_string_equal(vmm_strerror(VMM_EBROKEN), "VMM_EBROKEN");
	for (i = VMM_EBROKEN; i <= 0; i++)
		assert_memory_equal(vmm_strerror(i), i ? "VMM_E" : "VMM_OK", 5);
	assert_string_equal(vmm_strerror(1), "VMM_E?");
	assert_string_equal(vmm_strerror(VMM_EBROKEN - 1), "VMM_E?");
	assert_string_equal(vmm_strerror(INT32_MIN), "VMM_E?");
	assert_int_equal(vmm_version(), VMM_VERSION);
}

/* What will never change (vmm.h). */
_Static_assert(sizeof(struct vmm_error) == 256, "vmm_error is 256 bytes");
_Static_assert(sizeof(struct vmm_event) == 128, "vmm_event is 128 bytes");
_Static_assert(offsetof(struct vmm_error, message) == 8, "vmm_error.message");
_Static_assert(offsetof(struct vmm_event, detail) == 24, "vmm_event.detail");

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fail),
		cmocka_unit_test(test_fail_sys),
		cmocka_unit_test(test_log),
		cmocka_unit_test(test_names),
	};

	time_limit(5);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
