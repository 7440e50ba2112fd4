#include "training/folder_in_making.h"

#include "runtime/error.h"
#include "runtime/files.h"

namespace notellm {

namespace fs = std::filesystem;

FolderInMaking::FolderInMaking(const fs::path& destination)
    : destination_(destination.has_filename() ? destination : destination.parent_path()),
      partial_(destination_.string() + ".partial") {
  if (fs::exists(fs::symlink_status(destination_)))
    fail(ErrorKind::io, "{} is there already: choose another folder, or remove it", destination_.string());
  if (destination_.has_parent_path()) fs::create_directories(destination_.parent_path());
  if (fs::exists(fs::symlink_status(partial_)) || !fs::create_directory(partial_))
    fail(ErrorKind::io, "{} is there already, left by a run that was cut off or not of this program: remove it",
         partial_.string());
}

FolderInMaking::~FolderInMaking() {
  std::error_code ignored;
  if (!published_) fs::remove_all(partial_, ignored);
}

void FolderInMaking::publish() {
  sync_directory(partial_);
  fs::rename(partial_, destination_);
  published_ = true;
  sync_directory(destination_.parent_path());
}

}  // namespace notellm
