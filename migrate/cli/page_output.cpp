#include "migrate/cli/page_output.h"

#include <algorithm>
#include <iostream>

#include "migrate/cli/image_chain.h"
#include "migrate/cli/page_link.h"
#include "pageserver/criu_page_client.h"

namespace migrate::cli {

namespace {

constexpr std::chrono::seconds kServerAnswers(30);

}  // namespace

void check_page_options(const CoreOptions& o) {
  if (o.auto_dedup) throw Refusal("--auto-dedup is not supported", "leave it out; parents keep their pages");
  if (o.bandwidth_limit != 0 && !o.page_server)
    throw Refusal("--bandwidth-limit has no connection to hold back", "give --page-server too");
  if (o.tls && !o.page_server && !o.lazy_pages)
    throw Refusal("--tls has no connection to protect", "give --page-server or --lazy-pages too");
}

PageOutput::PageOutput(const CoreOptions& o, int images_dir) : options_(o), images_dir_(images_dir) {
  if (!o.prev_images_dir.empty()) previous_ = run_id_of(images_dir, o.prev_images_dir);
  if (!o.page_server) return;
  server_ = connect_page_server(o);
  // The tree stands while we wait for it.
  server_->set_idle_timeout(kServerAnswers);
}

WrittenPages PageOutput::write(const std::vector<PageSource>& sources, const PagesByMemory& in_parent, ImageSet& images,
                               const PagesByMemory& lazy, const PagesByMemory& left) {
  const bool needs_parent =
      std::any_of(in_parent.begin(), in_parent.end(), [](const auto& m) { return !m.second.empty(); });
  if (needs_parent) {
    link_parent(images_dir_, options_.prev_images_dir);
  } else {
    unlink_parent(images_dir_);
  }
  if (server_) {
    CriuPageClient client(std::move(server_), options_.bandwidth_limit);
    return write_pages(sources, in_parent, client);
  }
  PageFolder folder(images_dir_, images, false);
  folder.mark_lazy(lazy);
  folder.leave(left);
  return write_pages(sources, in_parent, folder);
}

void print_dump_stats(const DumpStats& s) {
  std::cout << "Displaying dump stats:\nFreezing time: " << s.freezing_time << " us\nFrozen time: " << s.frozen_time
            << " us\nMemory dump time: " << s.memdump_time << " us\nMemory write time: " << s.memwrite_time
            << " us\nMemory pages scanned: " << s.pages_scanned
            << "\nMemory pages skipped from parent: " << s.pages_in_parent
            << "\nMemory pages written: " << s.pages_written << "\n";
}

}  // namespace migrate::cli
