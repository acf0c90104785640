// A hostile client of the page server (CRIU's protocol), whose folder has a parent with pages.
#include <sys/socket.h>

#include <filesystem>

#include "core/memory/page_folder.h"
#include "core/memory/page_images.h"
#include "fuzz.h"
#include "images/pagemap.pb.h"
#include "pageserver/criu_page_server.h"
#include "pageserver/criu_protocol.h"
#include "pageserver/page_stream.h"

namespace migrate::fuzz {
namespace {

constexpr size_t kMostBytes = 96 << 10;  ///< fits into a socket's buffer
using Command = CriuRequest::Command;

void put(std::vector<std::byte>& out, const CriuRequest& request, size_t pages = 0) {
  const auto bytes = encode_criu_request(request);
  out.insert(out.end(), bytes.begin(), bytes.end());
  out.resize(out.size() + pages * kPageSize, std::byte{'x'});
}

std::vector<std::byte> session(bool with_parent) {
  std::vector<std::byte> out;
  for (const auto kind : {MemoryId::Kind::task, MemoryId::Kind::shmem}) {
    const MemoryId memory{kind, 42};
    put(out, {.command = Command::parent, .memory = memory});
    put(out, {.command = Command::open2, .memory = memory});
    put(out, {.command = Command::add_f, .flags = CriuRequest::kPresent, .pages = 2, .address = 0x10000}, 2);
    if (with_parent)
      put(out, {.command = Command::add_f, .flags = CriuRequest::kInParent, .pages = 1, .address = 0x20000});
    put(out, {.command = with_parent ? Command::hole : Command::add, .pages = 1, .address = 0x21000},
        with_parent ? 0 : 1);
    put(out, {.command = Command::add, .pages = 1, .address = 0x22000}, 1);
  }
  put(out, {.command = Command::close});
  return out;
}

std::vector<std::byte> parent_session() {
  std::vector<std::byte> out;
  for (const auto kind : {MemoryId::Kind::task, MemoryId::Kind::shmem}) {
    put(out, {.command = Command::open2, .memory = {kind, 42}});
    put(out, {.command = Command::add, .pages = 4, .address = 0x20000}, 4);
  }
  put(out, {.command = Command::close});
  return out;
}

/// The folder's pagemaps when all was stored.
ImageSet serve(int dirfd, std::span<const std::byte> bytes) {
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "a socket pair");
  const Fd feeder(fds[0]);
  const auto stream = raw_stream(Fd(fds[1]));
  if (::send(feeder.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return {};
  ::shutdown(feeder.get(), SHUT_WR);
  ImageSet images;
  PageFolder folder(dirfd, images, true);
  serve_criu_pages(*stream, folder);
  return images;
}

class Folders {
 public:
  Folders() {
    std::string name = "/dev/shm/migrate-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    path_ = name;
    for (const char* folder : {"/a", "/b"}) std::filesystem::create_directory(name + folder);
    serve(open_path(name + "/b", O_RDONLY | O_DIRECTORY).get(), parent_session());
    clear();
  }
  ~Folders() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  int clear() {
    std::filesystem::remove_all(path_ + "/a");
    std::filesystem::create_directory(path_ + "/a");
    std::filesystem::create_symlink("../b", path_ + "/a/parent");
    folder_ = open_path(path_ + "/a", O_RDONLY | O_DIRECTORY);
    return folder_.get();
  }

 private:
  std::string path_;
  Fd folder_;
};

}  // namespace

const Target kTarget{"criu_pages_fuzz", false};

void run(std::span<const std::byte> input) {
  static Folders folders;
  if (input.size() > kMostBytes) return;
  const int dirfd = folders.clear();
  try {
    const ImageSet stored = serve(dirfd, input);
    PageImages pages(dirfd);
    for (const auto& [name, bytes] : stored.images()) pages.locate(name);  // what was taken can be read
  } catch (const Corrupt& e) {
    const bool complete = std::string_view(e.what()).find("after the end") != std::string_view::npos;
    demand(complete || !std::filesystem::exists(fd_link(dirfd) + "/pagemap-42.img"), e.what());
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() { return {session(true), session(false), parent_session()}; }

}  // namespace migrate::fuzz
