// Shared anonymous memory that its mappings tell too little about: contents beyond all of them, and between them, and
// mappings that go on beyond its end. NUMBER pages (default 600) an object, of which a third each is mapped no more.
#include <setjmp.h>
#include <signal.h>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096;

sigjmp_buf g_out;

void on_bus(int /*signal*/) { siglongjmp(g_out, 1); }

bool raises_bus(const volatile char* at) {
  if (sigsetjmp(g_out, 1) != 0) return true;
  static_cast<void>(*at);
  return false;
}

char* shared(size_t pages) {
  void* at = mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  expect(at != MAP_FAILED, "mmap failed");
  return static_cast<char*>(at);
}

/// An object that was mapped whole, and is mapped in part.
class Object {
 public:
  Object(size_t pages, uint64_t salt) : pages_(pages), salt_(salt), at_(shared(pages)) {
    for (size_t i = 0; i < pages_; ++i)
      if (i % 7 != 3) fill_pattern(at_ + i * kPage, kPage, salt_ + i);
  }
  void unmap(size_t first, size_t pages) { must(munmap(at_ + first * kPage, pages * kPage), "munmap"); }

  /// By another mapping of all of it, from a page on that is mapped: mremap(2) of no bytes.
  void verify() const {
    void* all = mremap(at_, 0, pages_ * kPage, MREMAP_MAYMOVE);
    expect(all != MAP_FAILED, "mremap failed");
    const std::string name = "object " + std::to_string(salt_ / 1000);
    for (size_t i = 0; i < pages_; ++i) {
      const char* page = static_cast<const char*>(all) + i * kPage;
      expect(!raises_bus(page), name + " ends before page " + std::to_string(i));
      if (i % 7 != 3) {
        expect_pattern(page, kPage, salt_ + i, name + ", page " + std::to_string(i));
      } else {
        expect(*page == 0, name + ", page " + std::to_string(i) + " was never written");
      }
    }
    must(munmap(all, pages_ * kPage), "munmap");
  }

 private:
  size_t pages_;
  uint64_t salt_;
  char* at_;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        struct sigaction bus {};
        bus.sa_handler = on_bus;
        must(sigaction(SIGBUS, &bus, nullptr), "sigaction");
        const auto pages = static_cast<size_t>(w.number(0, 600));
        Object end(pages, 1000), middle(pages, 2000), small(12, 3000);
        end.unmap(pages - pages / 3, pages / 3);
        middle.unmap(pages / 3, pages / 3);
        small.unmap(4, 8);
        // Longer than its object.
        char* two = shared(2);
        two[kPage] = 7;
        void* four = mremap(two, 2 * kPage, 4 * kPage, MREMAP_MAYMOVE);
        expect(four != MAP_FAILED, "mremap failed");
        const char* longer = static_cast<const char*>(four);
        w.serve([&] {
          for (const Object* object : {&end, &middle, &small}) object->verify();
          expect(longer[kPage] == 7, "the page before the end of the object");
          expect(raises_bus(longer + 2 * kPage) && raises_bus(longer + 3 * kPage),
                 "a mapping beyond the end of its object is memory");
        });
      },
      argv[0]);
}
