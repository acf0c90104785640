// Kinds of mappings, beside files.
#include <sys/prctl.h>
#include <sys/wait.h>

#include "small.h"

WORKLOAD(memory, prot_none_with_data) {
  char* at = area(4);
  fill(at, 4, 8);
  must(mprotect(at + kPage, 2 * kPage, PROT_NONE), "mprotect");
  return [=] {
    expect(!readable(at + kPage) && !readable(at + 2 * kPage), "it can be read");
    expect(readable(at) && readable(at + 3 * kPage), "its neighbours cannot be read");
    must(mprotect(at + kPage, 2 * kPage, PROT_READ), "mprotect");
    expect_filled(at, 4, 8, "what is below the protection");
    must(mprotect(at + kPage, 2 * kPage, PROT_NONE), "mprotect");
  };
}

WORKLOAD(memory, reserved) {
  char* at = area(1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  must(mprotect(at + (size_t{5} << 28), kPage, PROT_READ | PROT_WRITE), "mprotect");
  at[size_t{5} << 28] = 3;
  return [=] {
    expect(has_vm_flag(at, "nr") && has_vm_flag(at + (size_t{5} << 28), "nr"), "memory is accounted that was not");
    expect(!readable(at), "reserved addresses can be read");
    expect_equal(at[size_t{5} << 28], 3, "the page in the middle");
  };
}

WORKLOAD(memory, read_only) {
  char* at = area(3);
  fill(at, 3, 6);
  must(mprotect(at, 3 * kPage, PROT_READ), "mprotect");
  return [=] {
    expect(!writable(at + kPage), "it can be written");
    expect_filled(at, 3, 6, "the memory");
  };
}

WORKLOAD(memory, executable) {
  auto* at = reinterpret_cast<unsigned char*>(area(1));
  const unsigned char code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3};  // mov eax, 42; ret
  std::memcpy(at, code, sizeof code);
  must(mprotect(at, kPage, PROT_READ | PROT_EXEC), "mprotect");
  int (*function)() = nullptr;
  std::memcpy(&function, &at, sizeof function);
  return [=] { expect_equal(function(), 42, "what the code in memory gives"); };
}

WORKLOAD(memory, grows_down) {
  // The kernel leaves 256 pages below free.
  char* at = area(1024, PROT_NONE);
  munmap(at, 1024 * kPage);
  char* top = static_cast<char*>(mmap(at + 1020 * kPage, 4 * kPage, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
  expect(top != MAP_FAILED, "mmap failed");
  fill(top, 4, 3);
  return [=] {
    expect(has_vm_flag(top, "gd"), "it does not grow down any more");
    expect_filled(top, 4, 3, "the memory");
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      at[1010 * kPage] = 1;  // raises SIGSEGV unless it grows
      std::_Exit(0);
    }
    int status = 0;
    must(waitpid(child, &status, 0), "waitpid");
    expect(status == 0, "it does not grow");
  };
}

WORKLOAD(memory, shared_anonymous) {
  char* at = area(8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  fill(at, 3, 2);
  idle_child();
  const Verify child = in_child([=]() -> Verify {
    return [=] {
      expect_filled(at, 3, 2, "shared memory in the child");
      ++at[7 * kPage];
    };
  });
  return [=] {
    const char before = at[7 * kPage];
    child();
    expect_equal(at[7 * kPage], static_cast<char>(before + 1), "what the child counts in shared memory");
    expect_filled(at, 3, 2, "shared memory");
  };
}

// Two mappings of the same memory, at different offsets.
WORKLOAD(memory, shared_twice) {
  const int fd = must(memfd_create("twice", MFD_CLOEXEC), "memfd_create");
  must(ftruncate(fd, 8 * kPage), "ftruncate");
  char* one = area(8, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  char* other = area(4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 * kPage);
  close(fd);
  fill(one, 8, 4);
  return [=] {
    expect(std::memcmp(one + 4 * kPage, other, 4 * kPage) == 0, "two mappings of the same memory differ");
    ++other[0];
    expect_equal(one[4 * kPage], other[0], "what was written through the other mapping");
    --other[0];
    expect_filled(one, 8, 4, "the memory");
  };
}

// mremap of size 0 doubles a shared mapping.
WORKLOAD(memory, mremap_double) {
  char* one = area(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  auto* other = static_cast<char*>(mremap(one, 0, 4 * kPage, MREMAP_MAYMOVE));
  expect(other != MAP_FAILED, "mremap failed");
  fill(one, 4, 4);
  return [=] {
    expect_filled(other, 4, 4, "the second mapping");
    ++one[9];
    expect_equal(other[9], one[9], "what was written through the first");
    --one[9];
  };
}

// mremap that leaves its old addresses mapped, and empty.
WORKLOAD(memory, mremap_dontunmap) {
  char* old = area(4);
  fill(old, 4, 7);
  auto* fresh =
      static_cast<char*>(mremap(old, 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, nullptr));
  expect(fresh != MAP_FAILED, "mremap failed");
  return [=] {
    expect_filled(fresh, 4, 7, "what was moved");
    for (size_t i = 0; i < 4 * kPage; ++i) expect(old[i] == 0, "what it was moved from is not empty");
  };
}

WORKLOAD(memory, named) {
  char* at = area(2);
  if (prctl(0x53564d41 /* PR_SET_VMA */, 0, at, 2 * kPage, "a name") == -1)
    throw NotHere("the kernel has no PR_SET_VMA_ANON_NAME");
  return [=] {
    expect(text_of("/proc/self/maps").find("[anon:a name]") != std::string::npos, "the mapping's name is gone");
  };
}

WORKLOAD(memory, heap) {
  return in_child([] {
    char* start = static_cast<char*>(sbrk(0));
    expect(sbrk(10 * kPage) == start, "sbrk failed");
    fill(start, 10, 2);
    return [=] {
      expect(sbrk(0) == start + 10 * kPage, "the heap ends elsewhere");
      expect_filled(start, 10, 2, "the heap");
      expect(sbrk(kPage) == start + 10 * kPage && start[10 * kPage] == 0, "the heap does not grow");
      expect(sbrk(-static_cast<intptr_t>(kPage)) == start + 11 * kPage, "the heap does not shrink");
    };
  });
}

WORKLOAD(memory, many_protections) {
  char* at = area(256);
  fill(at, 256, 5);
  for (size_t i = 0; i < 256; ++i)
    must(mprotect(at + i * kPage, kPage,
                  i % 3 == 0   ? PROT_NONE
                  : i % 3 == 1 ? PROT_READ
                               : PROT_READ | PROT_WRITE),
         "mprotect");
  return [=] {
    for (size_t i = 0; i < 256; i += 17) {
      expect(readable(at + i * kPage) == (i % 3 != 0), "page " + std::to_string(i) + " has another protection");
      if (i % 3 != 0)
        expect(at[i * kPage] == static_cast<char>(pattern(i * kPage, 5)), "page " + std::to_string(i) + " differs");
    }
  };
}

WORKLOAD(memory, sealed) {
  char* at = area(2);
  fill(at, 2, 3);
  if (syscall(462 /* mseal */, at, 2 * kPage, 0) == -1) throw NotHere("the kernel has no mseal");
  return [=] {
    expect(mprotect(at, kPage, PROT_NONE) == -1 && errno == EPERM, "a sealed mapping can be changed");
    expect_filled(at, 2, 3, "the sealed memory");
  };
}

// As code may be, with some pages of its own and a neighbour of another kind.
WORKLOAD(memory, sealed_file) {
  const int file = must(open("sealed", O_RDWR | O_CREAT | O_TRUNC, 0600), "open");
  must(ftruncate(file, 4 * kPage), "ftruncate");
  char* at = area(5);
  must(mmap(at, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, kPage) == at ? 0 : -1, "mmap");
  fill(at, 2, 4);
  fill(at + 3 * kPage, 2, 5);
  must(mprotect(at, 2 * kPage, PROT_READ), "mprotect");
  if (syscall(462 /* mseal */, at, 4 * kPage, 0) == -1) throw NotHere("the kernel has no mseal");
  return [=] {
    for (size_t page = 0; page < 4; ++page)
      expect(munmap(at + page * kPage, kPage) == -1 && errno == EPERM,
             "page " + std::to_string(page) + " is not sealed");
    expect(mprotect(at + 4 * kPage, kPage, PROT_READ) == 0, "its neighbour is sealed, too");
    expect_filled(at, 2, 4, "the sealed file");
    expect_filled(at + 3 * kPage, 2, 5, "the memory beside it");
    expect(at[2 * kPage] == 0, "a page of the file differs");
  };
}

WORKLOAD(memory, droppable) {
  void* at = mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, 0x08 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw NotHere("the kernel has no MAP_DROPPABLE");
  auto* words = static_cast<volatile char*>(at);
  words[0] = 'd';
  return [=] {
    expect(has_vm_flag(at, "dp"), "it is not droppable any more");
    expect(words[0] == 'd' || words[0] == 0, "it is neither there nor dropped");
    words[0] = 'd';
    words[kPage] = 'd';
  };
}

WORKLOAD(memory, secret) {
  const int fd = static_cast<int>(syscall(447 /* memfd_secret */, O_CLOEXEC));
  if (fd == -1) throw NotHere("the kernel has no memfd_secret");
  must(ftruncate(fd, 2 * kPage), "ftruncate");
  char* at = area(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  fill(at, 2, 9);
  return [=] { expect_filled(at, 2, 9, "the secret memory"); };
}

// A private copy of what children share with their parent: same bytes until one of them writes.
WORKLOAD(memory, copy_on_write) {
  char* at = area(32);
  fill(at, 32, 1);
  const Verify child = in_child([=]() -> Verify {
    at[5 * kPage] = 'c';
    return [=] {
      expect_equal(at[5 * kPage], 'c', "the child's own page");
      expect_filled(at, 5, 1, "what the child has in common with its parent");
    };
  });
  return [=] {
    expect_filled(at, 32, 1, "the parent's memory");
    child();
  };
}
