#include "pageserver/criu_page_server.h"

#include <array>
#include <memory>

#include "pageserver/codec.h"
#include "pageserver/criu_protocol.h"

namespace migrate {
namespace {

using Command = CriuRequest::Command;

class Server {
 public:
  Server(Stream& stream, PageFolder& folder) : stream_(stream), folder_(folder) {}

  void run() {
    std::array<std::byte, kCriuRequestSize> bytes{};
    while (next(bytes)) {
      // After CLOSE a client may still be there, with nothing to say.
      if (closed_) throw Corrupt("a page server request", "it comes after the end");
      const CriuRequest request = decode_criu_request(bytes);
      serve(request);
      if (request.command == Command::force_close) return;
    }
    if (!closed_) throw Disconnected(stream_.peer() + " left before its pages were complete");
  }

 private:
  bool next(std::span<std::byte> bytes) {
    try {
      return stream_.read_exact(bytes);
    } catch (const Disconnected&) {
      if (!closed_) throw;
      return false;
    }
  }

  void serve(const CriuRequest& r) {
    switch (r.command) {
      case Command::open:
        folder_.open(r.memory);
        return;
      case Command::open2:
        answer(static_cast<uint8_t>(folder_.open(r.memory)));
        return;
      case Command::parent:
        answer(static_cast<uint32_t>(folder_.parent_has(r.memory)));
        return;
      case Command::add:
        return take(r);
      case Command::hole:
        return folder_.in_parent(r.address, r.pages);
      case Command::add_f:
        if ((r.flags & CriuRequest::kPresent) != 0) return take(r);
        if ((r.flags & CriuRequest::kInParent) != 0) return folder_.in_parent(r.address, r.pages);
        return;  // pages of zeros need no entry
      case Command::get:
        throw Refusal(stream_.peer() + " asks for pages, as a lazy restore does", "this server takes pages only");
      case Command::close:
      case Command::force_close:
        folder_.finish();
        closed_ = true;
        answer(uint32_t{0});
        return;
    }
  }

  template <class T>
  void answer(T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    Packer(bytes).put(value);
    stream_.write(bytes);
  }

  void take(const CriuRequest& r) {
    for (uint64_t done = 0; done < r.pages;) {
      PageFileBuffer buffer = folder_.buffer();
      const std::span<std::byte> whole = buffer.bytes();
      const uint64_t pages = std::min<uint64_t>(r.pages - done, whole.size() / kPageSize);
      if (!stream_.read_exact(whole.first(pages * kPageSize)))
        throw Disconnected(stream_.peer() + " left before its pages were complete");
      const PlacedPages placed{r.address + done * kPageSize, pages, whole.data()};
      folder_.put(std::move(buffer), {&placed, 1});
      done += pages;
    }
  }

  Stream& stream_;
  PageFolder& folder_;
  bool closed_ = false;
};

}  // namespace

void serve_criu_pages(Stream& stream, PageFolder& folder) { Server(stream, folder).run(); }

}  // namespace migrate
