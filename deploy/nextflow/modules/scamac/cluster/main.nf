// Clusters the cells of one file: ingest, train and predict, each of which goes on where an earlier attempt was stopped.
process SCAMAC_CLUSTER {
    tag "$meta.id"
    label 'process_high'

    container 'registry.example.org/scamac-scale-nextflow:0.1.0' // of deploy/nextflow/Dockerfile

    // A folder of the disk must be seen in the container, too; a bucket needs nothing.
    containerOptions {
        def bind = workflow.containerEngine in ['apptainer', 'singularity'] ? '--bind' : '--volume'
        folder.startsWith('/') && workflow.containerEngine ? "$bind $folder:$folder" : ''
    }

    // 75: stopped by a signal, or a process was lost. Another try changes nothing after all other codes.
    errorStrategy { task.exitStatus == 75 ? 'retry' : 'finish' }
    maxRetries 20

    input:
    tuple val(meta), path(h5ad), val(n_clusters)
    val folder // of stores and runs: outside of Nextflow's work folder, which is another one in each attempt; or s3://bucket/folder

    output:
    tuple val(meta), path("${prefix}.scamac.h5ad"), emit: h5ad
    tuple val("${task.process}"), val('scamac-scale'), eval("scamac-scale --version | sed 's/.* //'"), emit: versions_scamac, topic: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def ingest = task.ext.args ?: ''
    def train = task.ext.args2 ?: ''
    def predict = task.ext.args3 ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    [[ "${folder}" == *://* ]] || mkdir -p "${folder}"
    export OMP_NUM_THREADS=${task.cpus}
    scamac-scale ingest ${h5ad} --out ${folder}/${prefix}.store.zarr --resume ${ingest}
    scamac-scale train --store ${folder}/${prefix}.store.zarr --run ${folder}/${prefix}.run --n-clusters ${n_clusters} --resume ${train}
    scamac-scale predict --run ${folder}/${prefix}.run --input ${folder}/${prefix}.store.zarr --out ${prefix}.scamac.h5ad ${predict}
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.scamac.h5ad
    """
}
