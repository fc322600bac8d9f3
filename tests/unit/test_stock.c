/* SPDX-License-Identifier: MIT */
/*
 * test_stock.c - core/stock.c: a VM is made ahead for who makes many.
 */
#include "unit.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "../../core/kvm.h"
#include "../../core/stock.h"
#include "fake_kvm.h"

/* The VM when there is one, or is none any more, within two seconds; -1: there is none. */
static int waits(struct stock *s, int there)
{
	int i, vm = there ? -1 : 0;

	for (i = 0; i < 2000 && (vm >= 0) != there; i++) {
		pthread_mutex_lock(&s->lock);
		vm = s->vm;
		pthread_mutex_unlock(&s->lock);
		usleep(1000);
	}
	return vm;
}

static void test_ahead(void **state)
{
	int kvm = kvm_open(), vm[3], i, status;
	struct stock s;

	(void)state;
	assert_true(kvm >= 0);
	fake.stock = 1;
	stock_init(&s);
	vm[0] = stock_take(&s, kvm);
	assert_int_equal(s.pid, 0);		/* who wants one has no thread */
	vm[1] = stock_take(&s, kvm);
	i = waits(&s, 1);
	assert_true(i >= 0 && vm[0] >= 0 && vm[1] >= 0 && i != vm[0] && i != vm[1]);
	vm[2] = stock_take(&s, kvm);
	assert_int_equal(vm[2], i);
	assert_true(waits(&s, 1) >= 0);
	/* A child of fork() has what is its own. */
	if (fork() == 0) {
		i = stock_take(&s, kvm_open());
		_exit(i < 0 || i == s.vm);
	}
	assert_true(wait(&status) > 0);
	assert_int_equal(status, 0);
	/* Nobody wants it; then somebody does. */
	i = s.vm;
	assert_int_equal(waits(&s, 0), -1);
	while (fcntl(i, F_GETFD) >= 0)
		usleep(1000);
	for (i = 0; i < 3; i++)
		close(vm[i]);
	vm[0] = stock_take(&s, kvm);
	assert_true(vm[0] >= 0);
	i = waits(&s, 1);
	assert_true(i >= 0);
	close(vm[0]);
	stock_fini(&s);
	assert_int_equal(fcntl(i, F_GETFD), -1);
	close(kvm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ahead),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
